"""(IA)³: a trained factor for every feature of the keys, the values and the feed-forward network's inner activations.

    keys, values        y = l ∘ (W x + b)       l [out]      (of a fused projection also its queries)
    feed-forward        y = W (l ∘ x) + b       l [in]       the last layer, so that l scales the inner activations

"Infused adapter by inhibiting and amplifying inner activations", Liu et al. 2022 (arXiv:2205.05638). Every l is
initialised with ones, so that the untrained model is bit-identical to its base. It has the fewest parameters of all
methods that change layers: one per feature. It costs nothing once it is merged: rows or columns of W, and b, are
multiplied by l. The trade-off: it can only strengthen and weaken features that the base computes already, and it needs
a high learning rate (the paper uses 3e-3).

In the file, which has PEFT's format: `base_model.model.<module path>.ia3_l`, [out, 1] for a scaled output and [1, in]
for a scaled input, and the modules of `modules_to_save` under their own names.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tsugiki.errors import TsugikiError
from tsugiki.language import _, marked
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.targets import find_targets
from tsugiki.methods.method import AdapterFormat, build_with_saved_modules, read_fields
from tsugiki.methods.peft_keys import PREFIX
from tsugiki.model.architectures import architecture_of, model_type
from tsugiki.model.linear import device_of, factor_dtype, features, is_conv1d, is_linear
from tsugiki.model.names import Names, matches, shortest_endings
from tsugiki.model.setting_checks import check_types
from tsugiki.model.targets_by_rule import sublayers_of
from tsugiki.model.trained_copies import copies_to_save, names_for_file, saved_tensors
from tsugiki.model.undo import Undo, attach_input_module, attach_output_module, base_of, replace_module
from tsugiki.model.ungrafted import base_modules
from tsugiki.model.weights import WeightUpdate, module_updates

_NAME_LAYERS = marked(
    "set target_modules to the layers of keys and values and the last layer of the feed-forward network, and "
    "feedforward_modules to the latter"
)


@dataclass(frozen=True)
class IA3Config:
    """Settings of (IA)³, named as in PEFT's `IA3Config`.

    Args:
        target_modules: the linear layers to scale, named as in `LoraConfig`. None: the layers of keys and values and
            the last layer of each feed-forward network (`tsugiki.model.targets_by_rule`); for some model types, the
            queries in place of the keys, as in PEFT (`tsugiki.model.architectures`).
        exclude_modules: layers left out although `target_modules` selects them; named the same way.
        feedforward_modules: those of the target layers that are scaled on their input instead of their output. A list
            of name endings, each of which `target_modules` must select too, or a regular expression. None: those that
            end a feed-forward network; an empty list: no layer.
        fan_in_fan_out: whether weights are stored as [in, out]. Only written to the file; Tsugiki finds it out from
            the layer.
        modules_to_save: modules trained in full, on a copy, and stored in the adapter (names or endings). None: the
            output layers of a classifier, if the model is one.
        init_ia3_weights: initialise with ones. False: with random values, which change the model at once; for tests.
    """

    target_modules: Names | None = None
    exclude_modules: Names | None = None
    feedforward_modules: Names | None = None
    fan_in_fan_out: bool = False
    modules_to_save: Sequence[str] | None = None
    init_ia3_weights: bool = True

    def __post_init__(self) -> None:
        check_types(self)
        targets, feedforward = self.target_modules, self.feedforward_modules
        if feedforward is None or targets is None or isinstance(feedforward, str) or isinstance(targets, str):
            return
        for name in feedforward:
            if not any(target.endswith(name) for target in targets):
                raise TsugikiError(
                    "feedforward_modules has {name}, but target_modules does not; add it to both", name=name
                )

    def new_adapter(self, model: nn.Module) -> "IA3Adapter":
        """Build a new adapter with these settings for `model`, which is not changed."""
        as_lora = LoraConfig(  # because (IA)³ names its layers as LoRA does
            r=1,
            target_modules=_target_names(model, self),
            exclude_modules=self.exclude_modules,
            modules_to_save=self.modules_to_save,
        )
        targets, feedforward = find_targets(model, as_lora), _feedforward_names(model, self)
        for path, layer in targets.items():
            if not is_linear(layer):
                raise TsugikiError(
                    "target_modules selects {path}, a {kind}; (IA)³ scales linear layers only",
                    path=path,
                    kind=type(layer).__name__,
                )
        scalings = {
            path: Scaling(layer, _is_feedforward(path, feedforward), self.init_ia3_weights)
            for path, layer in targets.items()
        }
        return IA3Adapter(self, scalings, copies_to_save(model, self.modules_to_save))


class Scaling(nn.Module):
    """The factors l of one layer, in float32 (float64 for a float64 layer) whatever the dtype of the frozen weight.

    They have PEFT's shapes, [1, in] for a scaled input and [out, 1] for a scaled output.
    """

    def __init__(self, layer: nn.Module, on_input: bool, ones: bool) -> None:
        super().__init__()
        in_features, out_features = features(layer)
        shape = (1, in_features) if on_input else (out_features, 1)
        initialise = torch.ones if ones else torch.randn
        # Drawn on the processor, so that the values are the same on every device.
        self.ia3_l = nn.Parameter(initialise(shape, dtype=factor_dtype(layer)).to(device_of(layer)))
        self.on_input = on_input

    def forward(self, x: Tensor) -> Tensor:
        """Compute l ∘ x, [..., features], in the dtype of x."""
        return (x * self.ia3_l.flatten()).to(x.dtype)

    def scale_weight(self, layer: nn.Module, weight: Tensor) -> Tensor:
        """Multiply the rows of W, or its columns if the input is scaled, by l; `weight` is in the layout of `layer`."""
        return weight * (self.ia3_l.T if is_conv1d(layer) else self.ia3_l)

    def scale_bias(self, bias: Tensor) -> Tensor:
        """Compute l ∘ b [out] for a scaled output."""
        return bias * self.ia3_l.flatten()


@dataclass
class IA3Adapter:
    """The factors and modules of one (IA)³ adapter, by names in the ungrafted model."""

    config: IA3Config
    scalings: dict[str, Scaling]
    modules: dict[str, nn.Module]

    def attach(self, model: nn.Module, undo: list[Undo]) -> None:
        """Attach the factors to their layers, and put the trained modules in place of the base's."""
        for path, layer in _frozen_layers(model, self.scalings).items():
            scaling = self.scalings[path]
            attach = attach_input_module if scaling.on_input else attach_output_module
            attach(layer, scaling, undo)
        for path, module in self.modules.items():
            replace_module(model, path, module, undo)

    def weight_updates(self, model: nn.Module) -> dict[str, WeightUpdate]:
        """Multiply weights and biases by the factors; replace modules by the trained ones."""
        layers = _frozen_layers(model, self.scalings)
        weights: dict[str, WeightUpdate] = {
            f"{path}.weight": partial(scaling.scale_weight, layers[path]) for path, scaling in self.scalings.items()
        }
        biases = {
            f"{path}.bias": scaling.scale_bias
            for path, scaling in self.scalings.items()
            if not scaling.on_input and layers[path]._parameters.get("bias") is not None
        }
        return weights | biases | module_updates(self.modules)


def _frozen_layers(model: nn.Module, paths: Iterable[str]) -> dict[str, nn.Module]:
    """Return the layers of the base, unwrapped if another adapter has grafted them."""
    return {path: base_of(model.get_submodule(path)) for path in paths}


def _target_names(model: nn.Module, config: IA3Config) -> Names:
    """Return the names of the layers that are scaled on their input or their output."""
    if config.target_modules is not None:
        return config.target_modules
    row = architecture_of(model)
    outputs = row.ia3_outputs if row is not None else None
    if outputs is None:
        outputs = tuple(_endings(model, sublayers_of(model).keys_and_values))
    targets = (*outputs, *_feedforward_ends(model))
    if not targets:
        raise TsugikiError(
            "{name} has no attention and no feed-forward network; {hint}", name=model_type(model), hint=_(_NAME_LAYERS)
        )
    return targets


def _feedforward_names(model: nn.Module, config: IA3Config) -> Names:
    """Return the names of the layers that are scaled on their input. Defaults are limited to the target layers."""
    if config.feedforward_modules is not None:
        return config.feedforward_modules
    names, targets = _feedforward_ends(model), config.target_modules
    return names if targets is None or isinstance(targets, str) else [name for name in names if name in targets]


def _feedforward_ends(model: nn.Module) -> list[str]:
    return _endings(model, sublayers_of(model).feedforward_ends)


def _endings(model: nn.Module, layers: Sequence[str]) -> list[str]:
    """Return name endings that select these layers and no other module of the model."""
    chosen = set(layers)
    return shortest_endings(layers, (name for name, _ in base_modules(model) if name not in chosen))


def _is_feedforward(path: str, names: Names) -> bool:
    """Return whether `feedforward_modules` selects a layer. As in PEFT, a listed ending need not follow a dot."""
    return matches(path, names) if isinstance(names, str) else path.endswith(tuple(names))


def _tensors(model: nn.Module, adapter: IA3Adapter) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {f"{PREFIX}{path}.ia3_l": scaling.ia3_l for path, scaling in adapter.scalings.items()}
    return tensors | saved_tensors(adapter.modules, PREFIX)


def _to_json(model: nn.Module, adapter: IA3Adapter) -> dict[str, Any]:
    config, layers = adapter.config, dict(base_modules(model))
    targets, feedforward = _target_names(model, config), _feedforward_names(model, config)
    both_listed = not isinstance(targets, str) and not isinstance(feedforward, str)
    # PEFT requires every entry of feedforward_modules to be in target_modules.
    if targets == "all-linear" or (both_listed and set(feedforward) - set(targets)):
        targets = sorted(adapter.scalings)
        feedforward = sorted(path for path, scaling in adapter.scalings.items() if scaling.on_input)
    return {
        **dataclasses.asdict(config),
        "target_modules": targets,
        "feedforward_modules": feedforward,
        "modules_to_save": names_for_file(model, adapter.modules),
        "fan_in_fan_out": any(is_conv1d(layers[path]) for path in adapter.scalings),
    }


IA3 = AdapterFormat(
    "IA3", IA3Config, _tensors, _to_json, partial(read_fields, IA3Config), build_for=build_with_saved_modules
)
