"""Bottleneck adapters: a small network of two layers, added to what it reads.

    Houlsby     s = x + a(h), with h = attention(norm(x))         a(h) = h + scaling · up(act(down(h)))
                y = s + a'(h'), with h' = feed-forward(norm(s))
    Pfeiffer    y = a(s + h')                                     after the feed-forward alone

down is [width / reduction_factor, width] and up [width, width / reduction_factor], both with a bias; x, h, s, y are
[..., width]. "Parameter-efficient transfer learning for NLP", Houlsby et al. 2019 (arXiv:1902.00751), who put one after
each sub-layer; "AdapterFusion", Pfeiffer et al. 2020 (arXiv:2005.00247), who found one a block to be enough.

Where they stand is what the AdapterHub library does in GPT-2 and Llama. Under its `DoubleSeqBnConfig` (Houlsby) they
read the sub-layer's own output, and their sum goes into the residual; under its `SeqBnConfig` (Pfeiffer) the one reads
what the block puts out, the residual in it. In blocks whose sub-layers work side by side (GPT-J, GPT-NeoX, Phi,
Cohere), each sub-layer's output is changed in the first case and the block's in the second, as it does in GPT-J. Where
a norm follows a sub-layer before the residual (Gemma 2 and 3, OLMo 2), the adapter comes before that norm; where one
ends the block (OPT-350m), Pfeiffer's comes after it. Norms stay frozen, which the paper of 2019 trained.

up begins at zero, so that the model is its base to the bit. The trade-off: unlike a low-rank pair, an adapter has a
non-linearity, and can learn what no change of the weights could. That is why it cannot be merged, and costs two small
products a sub-layer for good.

The file is not one of PEFT's, which refuses it by its `peft_type`:
`base_model.model.<sub-layer or block>.adapter_down.weight`, `….adapter_down.bias`, and `adapter_up` likewise.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Any, Literal, NoReturn, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.architectures import architecture_of, model_type
from tsugiki.base.context import text_config
from tsugiki.dtypes import at_least_float32
from tsugiki.errors import TsugikiError
from tsugiki.lora.frozen_layer import features, is_linear
from tsugiki.lora.layer import base_of
from tsugiki.lora.masks import dropout
from tsugiki.lora.names import check_names, split_block
from tsugiki.lora.swap import Undo
from tsugiki.lora.targets import find_modules
from tsugiki.methods.hooks import attach_output_module
from tsugiki.methods.method import PREFIX, AdapterFormat, read_fields

Start = Literal["mam_adapter", "bert"]

NON_LINEARITIES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "relu": F.relu,
        "gelu": F.gelu,
        "gelu_new": partial(F.gelu, approximate="tanh"),
        "swish": F.silu,
        "silu": F.silu,
        "tanh": torch.tanh,
        "leakyrelu": F.leaky_relu,
    }
)
"""act, by AdapterHub's names."""


@dataclass(frozen=True)
class BottleneckConfig:
    """Settings of bottleneck adapters, named as in AdapterHub's `BnConfig`.

    Args:
        mh_adapter: one after the attention.
        output_adapter: one after the feed-forward.
        reduction_factor: the width of the model over that of the bottleneck; or for each block by its number, as
            {"0": 8, "default": 16}.
        non_linearity: one of `NON_LINEARITIES`. None: as AdapterHub has it, "swish" where there is one after the
            attention, "relu" where there is not.
        original_ln_before: read what the block puts out, the residual added, instead of the feed-forward's own output;
            goes with `output_adapter` alone.
        init_weights: "mam_adapter": down Kaiming-uniform, up zero, so that nothing changes before training. "bert",
            which is AdapterHub's default: both normal with standard deviation 0.02, which changes the model at once.
        scaling: the factor on what is added.
        dropout: probability of dropping an element of what is added, while training.
        leave_out: numbers of the blocks that get none.
        attention_modules: which modules are the attention: names or name endings, or a regular expression for the whole
            name. None: the model type decides (`tsugiki.architectures`).
        feedforward_modules: which are the feed-forward, likewise.

    Raises:
        TsugikiError: a value that cannot be meant.
    """

    mh_adapter: bool = True
    output_adapter: bool = True
    reduction_factor: float | Mapping[str, float] = 16
    non_linearity: str | None = None
    original_ln_before: bool = False
    init_weights: Start = "mam_adapter"
    scaling: float = 1.0
    dropout: float = 0.0
    leave_out: Sequence[int] = ()
    attention_modules: Sequence[str] | str | None = None
    feedforward_modules: Sequence[str] | str | None = None

    def __post_init__(self) -> None:
        if not (self.mh_adapter or self.output_adapter):
            raise TsugikiError("mh_adapter and output_adapter are both False, so that there is no adapter at all")
        if self.original_ln_before and self.mh_adapter:
            raise TsugikiError(
                "original_ln_before goes with output_adapter alone: no module puts out the sum after the attention; "
                "leave mh_adapter or original_ln_before out"
            )
        by_block = isinstance(self.reduction_factor, Mapping)
        factors = dict(self.reduction_factor) if by_block else {"": self.reduction_factor}  # type: ignore[arg-type]
        for block, factor in factors.items():
            if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
                where = f"reduction_factor[{block!r}]" if by_block else "reduction_factor"
                raise TsugikiError(f"{where} is {factor!r}; it is a finite number above 0")
        if self.non_linearity is not None and self.non_linearity not in list(NON_LINEARITIES):
            raise TsugikiError(f"non_linearity is {self.non_linearity!r}; choose one of {', '.join(NON_LINEARITIES)}")
        if self.init_weights not in get_args(Start):
            raise TsugikiError(f"init_weights is {self.init_weights!r}; choose one of {', '.join(get_args(Start))}")
        if not isinstance(self.scaling, int | float) or not math.isfinite(self.scaling):
            raise TsugikiError(f"scaling is {self.scaling!r}; it is a finite number")
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise TsugikiError(f"dropout is {self.dropout!r}; it is a number of at least 0 and below 1")
        if not isinstance(self.leave_out, Sequence) or not all(type(number) is int for number in self.leave_out):
            raise TsugikiError(f"leave_out is {self.leave_out!r}; it is a list of the numbers of blocks")
        check_names("attention_modules", self.attention_modules)
        check_names("feedforward_modules", self.feedforward_modules)

    def new_adapter(self, model: nn.Module) -> "BottleneckAdapter":
        """Fresh adapters with these settings for `model`, which stays as it is.

        Raises:
            TsugikiError: the model has no such sub-layers, or they are not known.
        """
        places = _places(model, self)
        return BottleneckAdapter(self, {path: _new_bottleneck(model, path, self) for path in places})

    @property
    def activation(self) -> str:
        """The name of act."""
        return self.non_linearity or ("swish" if self.mh_adapter else "relu")


class Bottleneck(nn.Module):
    """h + scaling · dropout(up(act(down(h)))).

    Kept in float32 (float64 for a float64 base) whatever the base's dtype.
    """

    def __init__(self, width: int, inner: int, config: BottleneckConfig, like: Tensor) -> None:
        super().__init__()
        dtype = at_least_float32(like.dtype)
        self.adapter_down = nn.Linear(width, inner, dtype=dtype, device=like.device)
        self.adapter_up = nn.Linear(inner, width, dtype=dtype, device=like.device)
        self.act, self.scaling, self.p = config.activation, config.scaling, config.dropout
        for layer in (self.adapter_down, self.adapter_up):
            nn.init.zeros_(layer.bias)
        if config.init_weights == "bert":
            for layer in (self.adapter_down, self.adapter_up):
                nn.init.normal_(layer.weight, std=0.02)
        else:
            nn.init.kaiming_uniform_(self.adapter_down.weight, a=math.sqrt(5))
            nn.init.zeros_(self.adapter_up.weight)

    def forward(self, h: Tensor) -> Tensor:
        """[..., width] for h [..., width], in its dtype, in which the products are too: the weights are small.

        Raises:
            TsugikiError: h is of another width.
        """
        if h.shape[-1] != self.adapter_down.in_features:
            raise TsugikiError(
                f"a bottleneck {self.adapter_down.in_features} wide stands after a module whose output is "
                f"{h.shape[-1]} wide; name the modules that put out what is added to the residual"
            )
        inner = NON_LINEARITIES[self.act](_product(self.adapter_down, h))
        added = dropout(_product(self.adapter_up, inner), self.p if self.training else 0.0)
        return (h + self.scaling * added).to(h.dtype)


@dataclass
class BottleneckAdapter:
    """The bottlenecks of one adapter, by the module after which each stands: a sub-layer or a block."""

    config: BottleneckConfig
    bottlenecks: dict[str, Bottleneck]

    @property
    def wrapped(self) -> set[str]:
        """No layer is: each stays what it is, with a part beside it."""
        return set()

    def attach(self, model: nn.Module) -> list[Undo]:
        """Put the bottlenecks into the model."""
        return [
            attach_output_module(base_of(model.get_submodule(path)), part) for path, part in self.bottlenecks.items()
        ]

    def weight_updates(self, model: nn.Module) -> NoReturn:
        """Raise a TsugikiError: no weight of the base can hold the non-linearity."""
        raise TsugikiError(
            "a bottleneck adapter cannot be merged: no weight of the base can hold its non-linearity; keep it as a "
            "file beside the base"
        )


def _product(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def _sublayer_names(model: nn.Module, config: BottleneckConfig) -> dict[str, Sequence[str] | str]:
    """Of the attention and of the feed-forward, as far as they get an adapter: field of the config -> names."""
    wanted = {"attention_modules": config.mh_adapter, "feedforward_modules": config.output_adapter}
    architecture = architecture_of(model)
    known = (
        {}
        if architecture is None
        else dict(zip(wanted, (architecture.attention, architecture.feedforward), strict=True))
    )
    names: dict[str, Sequence[str] | str] = {}
    for field in [field for field, there in wanted.items() if there]:
        given = getattr(config, field)
        if given is None and field not in known:
            raise TsugikiError(
                f"where the sub-layers of {model_type(model)!r} are is not known; name the modules "
                f"that put out what is added to the residual: {field}, such as [mlp]"
            )
        names[field] = [known[field]] if given is None else given
    return names


def _places(model: nn.Module, config: BottleneckConfig) -> list[str]:
    """Names of the modules that get a bottleneck after them."""
    places: list[str] = []
    for field, names in _sublayer_names(model, config).items():
        found = [path for path in find_modules(model, names) if _block(path)[1] not in config.leave_out]
        if not found:
            raise TsugikiError(
                f"{field}={names} matches no module of this model"
                + (f" outside of blocks {list(config.leave_out)}" if config.leave_out else "")
            )
        places += found
    if not config.original_ln_before:
        return places
    blocks = [_block(path)[0] for path in places]
    if None in blocks:
        raise TsugikiError(
            f"{places[blocks.index(None)]} is in no numbered block, after which original_ln_before (pfeiffer) puts its "
            "adapter; leave it out to have the adapter after the module itself"
        )
    return list(dict.fromkeys(cast(list[str], blocks)))


def _block(path: str) -> tuple[str | None, int | None]:
    """Path and index of the block that a module is in."""
    blocks, index, _ = split_block(path)
    return (None, None) if index is None else (f"{blocks}.{index}".removeprefix("."), index)


def _new_bottleneck(model: nn.Module, path: str, config: BottleneckConfig) -> Bottleneck:
    module = base_of(model.get_submodule(path))
    like = next(chain(module.parameters(), module.buffers(), model.parameters()))
    width = features(module)[1] if is_linear(module) else _width(model, path)
    return Bottleneck(width, max(1, int(width // _reduction(config, path))), config, like)


def _width(model: nn.Module, path: str) -> int:
    width = getattr(text_config(model), "hidden_size", None)
    if not isinstance(width, int):
        raise TsugikiError(
            f"how wide the output of {path} is is not known (the model has no config.hidden_size); "
            "name the linear layer that it ends with"
        )
    return width


def _reduction(config: BottleneckConfig, path: str) -> float:
    if not isinstance(config.reduction_factor, Mapping):
        return config.reduction_factor
    for key in (str(_block(path)[1]), "default"):
        if key in config.reduction_factor:
            return config.reduction_factor[key]
    raise TsugikiError(f"reduction_factor says nothing of {path}; add its block's number, or 'default'")


def _tensors(model: nn.Module, adapter: BottleneckAdapter) -> dict[str, Tensor]:
    return {
        f"{PREFIX}{path}.{name}": parameter
        for path, part in adapter.bottlenecks.items()
        for name, parameter in part.named_parameters()
    }


def _to_json(model: nn.Module, adapter: BottleneckAdapter) -> dict[str, Any]:
    config = adapter.config
    decided = {"non_linearity": config.activation, **_sublayer_names(model, config)}
    return {**dataclasses.asdict(config), **decided}


def _from_json(fields: Mapping[str, Any]) -> BottleneckConfig:
    return read_fields(BottleneckConfig, fields)


BOTTLENECK = AdapterFormat("TSUGIKI_BOTTLENECK", BottleneckConfig, _tensors, _to_json, _from_json)
