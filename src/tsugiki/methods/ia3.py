"""(IA)³: a learned factor for every feature of keys, values and the feed-forward's inner activations.

    keys, values        y = l ∘ (W x + b)       l [out]      (of a fused projection, its queries too)
    feed-forward        y = W (l ∘ x) + b       l [in]       its last layer, so that what it is given is scaled

"Infused adapter by inhibiting and amplifying inner activations", Liu et al. 2022 (arXiv:2205.05638). All l begin at
one, which is the base to the bit. The trade-off: it has the fewest parameters of all here, a number for each feature,
and costs nothing once it is merged, as rows or columns of W (and b) times l; but it can only strengthen and weaken what
the base computes already, and wants a high learning rate (the paper's is 3e-3).

A file of PEFT's: `base_model.model.<module path>.ia3_l`, [out, 1], or [1, in] in the feed-forward; and modules_to_save
under their own names.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tsugiki.architectures import Architecture, architecture_of, model_type
from tsugiki.dtypes import at_least_float32
from tsugiki.errors import TsugikiError
from tsugiki.lora.adapter import copies_to_save
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.frozen_layer import features, is_conv1d, is_linear
from tsugiki.lora.layer import base_of
from tsugiki.lora.names import check_names
from tsugiki.lora.swap import Undo, WeightUpdate, module_updates, replace_module
from tsugiki.lora.targets import base_modules, find_targets
from tsugiki.methods.hooks import attach_input_module, attach_output_module
from tsugiki.methods.method import PREFIX, AdapterFormat, read_fields

Names = Sequence[str] | str


@dataclass(frozen=True)
class IA3Config:
    """Settings of (IA)³, named as in PEFT's `IA3Config`.

    Args:
        target_modules: which linear layers are scaled, named as in `LoraConfig`. None: the table here decides.
        exclude_modules: layers left out although `target_modules` finds them; matched the same way.
        feedforward_modules: those of them that are scaled on their input, not their output: name endings, each of
            which `target_modules` has too, or a regular expression. None: the table decides; an empty list: none.
        fan_in_fan_out: whether weights lie as [in, out]. Kept for the file: the layer itself tells.
        modules_to_save: modules trained whole, on a copy, and stored in the adapter (names or endings).
        init_ia3_weights: begin at one. False: at random, which changes the model at once; for tests only.

    Raises:
        TsugikiError: a value that cannot be meant.
    """

    target_modules: Names | None = None
    exclude_modules: Names | None = None
    feedforward_modules: Names | None = None
    fan_in_fan_out: bool = False
    modules_to_save: Sequence[str] | None = None
    init_ia3_weights: bool = True

    def __post_init__(self) -> None:
        for field in ("target_modules", "exclude_modules", "feedforward_modules", "modules_to_save"):
            check_names(field, getattr(self, field))
        targets, inner = self.target_modules, self.feedforward_modules
        if inner is None or targets is None or isinstance(inner, str) or isinstance(targets, str):
            return
        for name in inner:
            if not any(target.endswith(name) for target in targets):
                raise TsugikiError(f"feedforward_modules names {name}, which target_modules does not; name it in both")

    def new_adapter(self, model: nn.Module) -> "IA3Adapter":
        """Fresh factors with these settings for `model`, which stays as it is.

        Raises:
            TsugikiError: the settings match nothing in the model, or something that cannot be scaled.
        """
        named = _named_as_in_lora(self, _target_names(model, self))
        targets, inner = find_targets(model, named), _feedforward_names(model, self)
        for path, layer in targets.items():
            if not is_linear(layer):
                raise TsugikiError(f"target_modules finds {path}, a {type(layer).__name__}; (IA)³ scales linear layers")
        scalings = {
            path: Scaling(layer, _is_feedforward(path, inner), self.init_ia3_weights) for path, layer in targets.items()
        }
        return IA3Adapter(self, scalings, copies_to_save(model, named))


class Scaling(nn.Module):
    """The factors l of one layer, in PEFT's shape: [out, 1], or [1, in] where `on_input`.

    Kept in float32 (float64 for a float64 layer) whatever the frozen weight's dtype.
    """

    def __init__(self, layer: nn.Module, on_input: bool, ones: bool) -> None:
        super().__init__()
        in_features, out_features = features(layer)
        like: Tensor = layer.weight  # type: ignore[assignment]
        shape = (1, in_features) if on_input else (out_features, 1)
        dtype = at_least_float32(like.dtype)
        self.ia3_l = nn.Parameter((torch.ones if ones else torch.randn)(shape, dtype=dtype, device=like.device))
        self.on_input = on_input

    def forward(self, x: Tensor) -> Tensor:
        """l ∘ x, [..., features], in the dtype of x."""
        return (x * self.ia3_l.flatten()).to(x.dtype)

    def scaled(self, layer: nn.Module, weight: Tensor) -> Tensor:
        """W with its rows (its columns, where `on_input`) times l; `weight` is W in the layout of `layer`."""
        return weight * (self.ia3_l.T if is_conv1d(layer) else self.ia3_l)

    def scaled_bias(self, bias: Tensor) -> Tensor:
        """l ∘ b [out]; of the layer's output."""
        return bias * self.ia3_l.flatten()


@dataclass
class IA3Adapter:
    """What one (IA)³ adapter brings. Names are those of the model before any graft."""

    config: IA3Config
    scalings: dict[str, Scaling]
    modules: dict[str, nn.Module]

    @property
    def wrapped(self) -> set[str]:
        """No layer is: each stays what it is, with a part beside it."""
        return set()

    def attach(self, model: nn.Module) -> list[Undo]:
        """Put factors and modules into the model."""
        layers = _own_layers(model, self.scalings)
        undo = [_put(layers[path], scaling) for path, scaling in self.scalings.items()]
        return undo + [replace_module(model, path, module) for path, module in self.modules.items()]

    def weight_updates(self, model: nn.Module) -> dict[str, WeightUpdate]:
        """Multiply weights and biases by the factors; replace modules by the trained ones."""
        layers = _own_layers(model, self.scalings)
        weights: dict[str, WeightUpdate] = {
            f"{path}.weight": partial(scaling.scaled, layers[path]) for path, scaling in self.scalings.items()
        }
        biases = {
            f"{path}.bias": scaling.scaled_bias
            for path, scaling in self.scalings.items()
            if not scaling.on_input and layers[path]._parameters.get("bias") is not None
        }
        return weights | biases | module_updates(self.modules)


def _own_layers(model: nn.Module, paths: Mapping[str, Any]) -> dict[str, nn.Module]:
    """The layers of the base itself, below what another adapter may have put around them."""
    return {path: base_of(model.get_submodule(path)) for path in paths}


def _put(layer: nn.Module, scaling: Scaling) -> Undo:
    return (attach_input_module if scaling.on_input else attach_output_module)(layer, scaling)


def _named_as_in_lora(config: IA3Config, targets: Names | None) -> LoraConfig:
    """The LoRA that would be grafted on these layers: (IA)³ names its layers in the same way."""
    return LoraConfig(
        r=1,
        target_modules=targets,
        exclude_modules=config.exclude_modules,
        modules_to_save=config.modules_to_save,
    )


def _target_names(model: nn.Module, config: IA3Config) -> Names:
    if config.target_modules is not None:
        return config.target_modules
    architecture = _architecture(model, "target_modules")
    return (*architecture.ia3_outputs, *architecture.ia3_inputs)


def _feedforward_names(model: nn.Module, config: IA3Config) -> Names:
    """The layers that are scaled on their input, among those of `_target_names`."""
    if config.feedforward_modules is not None:
        return config.feedforward_modules
    names, targets = _architecture(model, "feedforward_modules").ia3_inputs, config.target_modules
    return names if targets is None or isinstance(targets, str) else [name for name in names if name in targets]


def _architecture(model: nn.Module, field: str) -> Architecture:
    architecture = architecture_of(model)
    if architecture is None:
        raise TsugikiError(
            f"no default {field} of (IA)³ for {model_type(model)!r}; name the layers: keys, values and the last of the "
            "feed-forward as target_modules, the last of the feed-forward as feedforward_modules"
        )
    return architecture


def _is_feedforward(path: str, names: Names) -> bool:
    """As PEFT has it: any ending of the name, not only after a dot."""
    return re.fullmatch(names, path) is not None if isinstance(names, str) else path.endswith(tuple(names))


def _tensors(model: nn.Module, adapter: IA3Adapter) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {f"{PREFIX}{path}.ia3_l": s.ia3_l for path, s in adapter.scalings.items()}
    for path, module in adapter.modules.items():
        tensors |= {f"{PREFIX}{path}.{name}": tensor for name, tensor in module.state_dict().items()}
    return tensors


def _to_json(model: nn.Module, adapter: IA3Adapter) -> dict[str, Any]:
    config, layers = adapter.config, dict(base_modules(model))
    targets, inner = _target_names(model, config), _feedforward_names(model, config)
    listed = not isinstance(targets, str) and not isinstance(inner, str)
    if targets == "all-linear" or (listed and set(inner) - set(targets)):  # PEFT wants one list to be part of the other
        targets = sorted(adapter.scalings)
        inner = sorted(path for path, scaling in adapter.scalings.items() if scaling.on_input)
    names = {"target_modules": targets, "feedforward_modules": inner}
    fan_in_fan_out = any(is_conv1d(layers[path]) for path in adapter.scalings)
    return {**dataclasses.asdict(config), **names, "fan_in_fan_out": fan_in_fan_out}


def _from_json(fields: Mapping[str, Any]) -> IA3Config:
    return read_fields(IA3Config, fields)


IA3 = AdapterFormat("IA3", IA3Config, _tensors, _to_json, _from_json)
