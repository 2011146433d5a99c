"""Bottleneck adapters: a small two-layer network whose output is added to its input.

    Houlsby     s = x + a(h), with h = attention(norm(x))         a(h) = h + scaling · up(act(down(h)))
                y = s + a'(h'), with h' = feed-forward(norm(s))
    Pfeiffer    y = a(s + h')                                     after the feed-forward only

down is [width / reduction_factor, width] and up [width, width / reduction_factor], both with a bias; x, h, s, y are
[..., width]. "Parameter-efficient transfer learning for NLP", Houlsby et al. 2019 (arXiv:1902.00751), has one after
each sub-layer; "AdapterFusion", Pfeiffer et al. 2020 (arXiv:2005.00247), finds that one per block is enough.

The positions are those that the AdapterHub library uses in GPT-2 and Llama. In its `DoubleSeqBnConfig` (Houlsby), the
adapters read the output of the sub-layer, and the result is added to the residual. In its `SeqBnConfig` (Pfeiffer), the
adapter reads the output of the block, which includes the residual. In blocks with parallel sub-layers (GPT-J, GPT-NeoX,
Phi, Cohere), the first kind changes the output of each sub-layer and the second kind the output of the block, as in
AdapterHub's GPT-J. If a norm follows the sub-layer before the residual is added (Gemma 2 and 3, OLMo 2), the adapter
comes before that norm. If a norm ends the block (OPT-350m), Pfeiffer's adapter comes after it. The norms are frozen,
although the paper of 2019 trained them.

up is initialised with zeros, so that the untrained model is bit-identical to its base. The trade-off: unlike low-rank
factors, an adapter has a non-linearity, and can learn what no change of the weights could express. For the same reason
it cannot be merged, and always costs two small matrix products per sub-layer.

PEFT has no such method and refuses the file because of its `peft_type`. The names in the file are
`base_model.model.<sub-layer or block>.adapter_down.weight`, `….adapter_down.bias`, and the same with `adapter_up`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Annotated, Any, Literal, NoReturn, TypeAlias

import torch
from annotated_types import Ge, Le, Lt
from torch import Tensor, nn
from torch.nn import functional as F

from tsugiki.dtypes import at_least_float32
from tsugiki.errors import TsugikiError
from tsugiki.fast.masks import dropout
from tsugiki.language import _, marked
from tsugiki.lora.config import LARGEST_FACTOR, Indices
from tsugiki.methods.method import AdapterFormat, check_shapes, read_fields
from tsugiki.methods.peft_keys import PREFIX
from tsugiki.model.architectures import model_type
from tsugiki.model.context import text_config
from tsugiki.model.linear import features, is_linear
from tsugiki.model.names import Names, shortest_endings, split_block
from tsugiki.model.setting_checks import check_types
from tsugiki.model.targets_by_rule import sublayers_of
from tsugiki.model.undo import Undo, attach_output_module, base_of
from tsugiki.model.ungrafted import base_modules, find_modules

_NAME_MODULES = marked("name the modules whose output is added to the residual, such as {setting}: [mlp]")

Initialisation: TypeAlias = Literal["mam_adapter", "bert"]
NonLinearity: TypeAlias = Literal["relu", "gelu", "gelu_new", "swish", "silu", "tanh", "leakyrelu"]
Reduction: TypeAlias = Annotated[float, Ge(1 / 64), Lt(math.inf)]
"""The smallest value gives a bottleneck that is 64 times as wide as the model."""

NON_LINEARITIES: Mapping[NonLinearity, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "swish": F.silu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "leakyrelu": F.leaky_relu,
}
"""The activation functions, by AdapterHub's names."""


@dataclass(frozen=True)
class BottleneckConfig:
    """Settings of bottleneck adapters, named as in AdapterHub's `BnConfig`.

    Args:
        mh_adapter: an adapter after the attention.
        output_adapter: an adapter after the feed-forward network.
        reduction_factor: width of the model divided by the width of the bottleneck. A mapping gives a value for each
            block by its index, such as {"0": 8, "default": 16}.
        non_linearity: one of `NON_LINEARITIES`. None: as in AdapterHub, "swish" with an adapter after the attention,
            "relu" without.
        original_ln_before: read the output of the block, which includes the residual, instead of the output of the
            feed-forward network. It requires that `mh_adapter` is False.
        init_weights: "mam_adapter": down Kaiming-uniform, up zero, so that nothing changes before training. "bert",
            AdapterHub's default: both normal with standard deviation 0.02, which changes the model at once.
        scaling: factor on what is added.
        dropout: probability of dropping an element of what is added, while training.
        leave_out: indices of the blocks that get no adapter.
        attention_modules: the attention modules: a list of names or name endings, or a regular expression for the whole
            name. None: those that `tsugiki.model.targets_by_rule` finds.
        feedforward_modules: the feed-forward modules, named the same way.
    """

    mh_adapter: bool = True
    output_adapter: bool = True
    reduction_factor: Reduction | Mapping[str, Reduction] = 16
    non_linearity: NonLinearity | None = None
    original_ln_before: bool = False
    init_weights: Initialisation = "mam_adapter"
    scaling: Annotated[float, Ge(-LARGEST_FACTOR), Le(LARGEST_FACTOR)] = 1.0
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    leave_out: Indices = ()
    attention_modules: Names | None = None
    feedforward_modules: Names | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if not (self.mh_adapter or self.output_adapter):
            raise TsugikiError("mh_adapter and output_adapter are both False, so there is no adapter; set one to True")
        if self.original_ln_before and self.mh_adapter:
            raise TsugikiError(
                "original_ln_before cannot be combined with mh_adapter: no module outputs the sum after the "
                "attention; leave one of them out"
            )

    def new_adapter(self, model: nn.Module) -> "BottleneckAdapter":
        """Build new adapters with these settings for `model`, which is not changed."""
        modules = _adapted_modules(model, self)
        return BottleneckAdapter(self, {path: _new_bottleneck(model, path, self) for path in modules})

    @property
    def activation(self) -> NonLinearity:
        """The name of the activation function."""
        return self.non_linearity or ("swish" if self.mh_adapter else "relu")


class Bottleneck(nn.Module):
    """h + scaling · dropout(up(act(down(h)))).

    The weights are on the device of `like`, a tensor of the base, in float32 (float64 if it is float64). Their initial
    values are drawn on the processor, so that they are the same on every device.
    """

    def __init__(self, width: int, inner: int, config: BottleneckConfig, like: Tensor) -> None:
        super().__init__()
        dtype = at_least_float32(like.dtype)
        self.adapter_down = nn.Linear(width, inner, dtype=dtype)
        self.adapter_up = nn.Linear(inner, width, dtype=dtype)
        self.act, self.scaling, self.p = config.activation, float(config.scaling), config.dropout
        for layer in (self.adapter_down, self.adapter_up):
            nn.init.zeros_(layer.bias)
        if config.init_weights == "bert":
            for layer in (self.adapter_down, self.adapter_up):
                nn.init.normal_(layer.weight, std=0.02)
        else:
            nn.init.kaiming_uniform_(self.adapter_down.weight, a=math.sqrt(5))
            nn.init.zeros_(self.adapter_up.weight)
        self.to(like.device)

    def forward(self, h: Tensor) -> Tensor:
        """Apply the adapter to h, [..., width]. The products and the result have the dtype of h."""
        if h.shape[-1] != self.adapter_down.in_features:
            raise TsugikiError(
                "the adapter of width {width} follows a module whose output has width {found}; name modules "
                "whose output is added to the residual",
                width=self.adapter_down.in_features,
                found=h.shape[-1],
            )
        inner = NON_LINEARITIES[self.act](_linear(self.adapter_down, h))
        added = dropout(_linear(self.adapter_up, inner), self.p if self.training else 0.0)
        return (h + self.scaling * added).to(h.dtype)


@dataclass
class BottleneckAdapter:
    """The bottlenecks of one adapter, by the path of the module (sub-layer or block) whose output each changes."""

    config: BottleneckConfig
    bottlenecks: dict[str, Bottleneck]

    def attach(self, model: nn.Module, undo: list[Undo]) -> None:
        """Attach each bottleneck to its module."""
        for path, bottleneck in self.bottlenecks.items():
            attach_output_module(base_of(model.get_submodule(path)), bottleneck, undo)

    def weight_updates(self, model: nn.Module) -> NoReturn:
        """Raise a TsugikiError: no weight of the base can hold the non-linearity."""
        raise TsugikiError(
            "a bottleneck adapter cannot be merged: no weight of the base can hold its non-linearity; keep it "
            "as a separate file"
        )


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def _sublayer_names(model: nn.Module, config: BottleneckConfig) -> dict[str, Names]:
    """Return the names of the attention and feed-forward modules with an adapter, by the settings that name them."""
    used = {"attention_modules": config.mh_adapter, "feedforward_modules": config.output_adapter}
    names: dict[str, Names] = {setting: getattr(config, setting) for setting, is_used in used.items() if is_used}
    for setting in [setting for setting, given in names.items() if given is None]:
        sublayers = sublayers_of(model)
        found = set(sublayers.attention if setting == "attention_modules" else sublayers.feedforward)
        names[setting] = shortest_endings(found, (name for name, _ in base_modules(model) if name not in found))
    if not any(names.values()):
        raise TsugikiError(
            "{name} has no such sub-layer; {hint}",
            name=model_type(model),
            hint=_(_NAME_MODULES, setting=next(iter(names))),
        )
    return names


def _adapted_modules(model: nn.Module, config: BottleneckConfig) -> list[str]:
    """Return the paths of the modules whose output an adapter changes."""
    sublayers: list[str] = []
    for setting, names in _sublayer_names(model, config).items():
        found = [path for path in find_modules(model, names) if split_block(path)[1] not in config.leave_out]
        if names and not found:
            outside = _(" outside of blocks {blocks}", blocks=list(config.leave_out)) if config.leave_out else ""
            raise TsugikiError(
                "{setting}={names} matches no module of this model{outside}",
                setting=setting,
                names=names,
                outside=outside,
            )
        sublayers += found
    return list(dict.fromkeys(map(_block_of, sublayers))) if config.original_ln_before else sublayers


def _block_of(path: str) -> str:
    """Return the path of the block that a module is in."""
    blocks, index, _other = split_block(path)
    if index is None:
        raise TsugikiError(
            "{path} is not in a numbered block, and original_ln_before (pfeiffer) puts its adapter after the "
            "block; set original_ln_before to False to have the adapter after the module itself",
            path=path,
        )
    return f"{blocks}.{index}".removeprefix(".")


def _new_bottleneck(model: nn.Module, path: str, config: BottleneckConfig) -> Bottleneck:
    module = base_of(model.get_submodule(path))
    like = next(chain(module.parameters(), module.buffers(), model.parameters()))
    return Bottleneck(*_sizes(model, path, config), config, like)


def _sizes(model: nn.Module, path: str, config: BottleneckConfig) -> tuple[int, int]:
    """Return the width of a module's output, and that of its bottleneck."""
    module = base_of(model.get_submodule(path))
    width = features(module)[1] if is_linear(module) else _hidden_size(model, path)
    return width, max(1, int(width // _reduction_factor(config, path)))


def _build_for(model: nn.Module, config: BottleneckConfig, file_tensors: Mapping[str, Tensor]) -> BottleneckAdapter:
    """Build adapters for a file, if the bottlenecks in the file are as wide as the config says."""
    expected: dict[str, tuple[int, int]] = {}
    for path in _adapted_modules(model, config):
        width, inner = _sizes(model, path, config)
        expected[f"{PREFIX}{path}.adapter_down.weight"] = inner, width
        expected[f"{PREFIX}{path}.adapter_up.weight"] = width, inner
    check_shapes(expected, file_tensors)
    return config.new_adapter(model)


def _hidden_size(model: nn.Module, path: str) -> int:
    width = getattr(text_config(model), "hidden_size", None)
    if not isinstance(width, int):
        raise TsugikiError(
            "the width of the output of {path} is unknown, because the model has no config.hidden_size; name "
            "the last linear layer of the module instead",
            path=path,
        )
    return width


def _reduction_factor(config: BottleneckConfig, path: str) -> float:
    if not isinstance(config.reduction_factor, Mapping):
        return config.reduction_factor
    for key in (str(split_block(path)[1]), "default"):
        if key in config.reduction_factor:
            return config.reduction_factor[key]
    raise TsugikiError("reduction_factor has no value for {path}; add its block's index, or 'default'", path=path)


def _tensors(model: nn.Module, adapter: BottleneckAdapter) -> dict[str, Tensor]:
    return {
        f"{PREFIX}{path}.{name}": parameter
        for path, bottleneck in adapter.bottlenecks.items()
        for name, parameter in bottleneck.named_parameters()
    }


def _to_json(model: nn.Module, adapter: BottleneckAdapter) -> dict[str, Any]:
    config = adapter.config
    resolved = {"non_linearity": config.activation, **_sublayer_names(model, config)}
    return {**dataclasses.asdict(config), **resolved}


BOTTLENECK = AdapterFormat(
    "TSUGIKI_BOTTLENECK",
    BottleneckConfig,
    _tensors,
    _to_json,
    partial(read_fields, BottleneckConfig),
    build_for=_build_for,
)
