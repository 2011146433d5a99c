"""Selective methods: some parameters of the base train, on copies. Nothing is added to the model.

    y = f(x; θ_S + Δ, θ_rest)        S: the selected parameters, each trained in full; all others are frozen

    bitfit   S = the biases, [out] of each layer        Ben Zaken et al. 2021, arXiv:2106.10199
    norms    S = the weights (and biases) of the normalisation layers, [width] each
                                                        Zhao et al. 2023, arXiv:2312.11420
    head     S = the output head, [vocabulary, width]
    select   S = the parameters that a pattern of names selects, such as all of the last block

While the adapter is attached, the copies replace the base's parameters, whose values never change. After merging, the
copies are the model's parameters, at no cost. The copies are float32; a 16-bit base computes with their values rounded
to its own dtype.

The trade-off: nothing is added, so the model is as fast as before, and biases or norms are about a thousandth of its
parameters. But what they can express is limited and there is no rank to raise, and many models (such as Llama) have no
biases at all. The head is one large matrix, which can only separate tokens by features that the layers below compute
already.

In the file, `norms` is PEFT's LN_TUNING. The others are Tsugiki's own formats, which PEFT refuses:

    base_model.model.<module path>.ln_tuning_layers.<name>    (norms)
    base_model.model.<parameter path>                         (the others; a shared parameter under its first name)
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tsugiki.dtypes import at_least_float32
from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.methods.method import AdapterFormat, build_with_saved_modules, read_fields
from tsugiki.methods.peft_keys import PREFIX
from tsugiki.model.linear import is_quantized
from tsugiki.model.names import Names, matches, shortest_endings
from tsugiki.model.setting_checks import check_types
from tsugiki.model.trained_copies import (
    check_trained_parameters,
    copies_to_save,
    names_for_file,
    saved_tensors,
)
from tsugiki.model.undo import Undo, cast_parameters, parameter_owner, replace_module, replace_parameter
from tsugiki.model.ungrafted import base_modules, output_head, with_first_names
from tsugiki.model.weights import WeightUpdate, module_updates, replace_with

HEAD = "head"
"""The value of `target_parameters` that selects the parameters of the output head, whatever their names are."""
_MAX_NAMES = 12  # in a message


@dataclass(frozen=True)
class SelectiveConfig:
    """Settings of an adapter that trains selected parameters of the base.

    Args:
        target_parameters: the parameters. A list has names or name endings (`bias` selects every `….bias`). A string is
            a regular expression for the whole name (`.*\\.h\\.3\\..*` selects all of a block), or "head" for the
            output head.
    """

    target_parameters: Names | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if not self.target_parameters:
            raise TsugikiError(
                "target_parameters is empty; set it to a list of name endings, or to a regular expression"
            )

    def new_adapter(self, model: nn.Module) -> "SelectiveAdapter":
        """Build a new adapter with these settings for `model`, which is not changed."""
        return _new_adapter(model, self, _selected_parameters(model, self))


@dataclass(frozen=True)
class LNTuningConfig:
    """Settings of an adapter that trains normalisation layers, named as in PEFT's `LNTuningConfig`.

    Args:
        target_modules: the layers. A list has names or name endings, a string is a regular expression for the whole
            name. None: every normalisation layer.
        exclude_modules: layers left out although `target_modules` selects them; named the same way.
        modules_to_save: modules trained in full, on a copy, and stored in the adapter (names or endings). None: the
            output layers of a classifier, if the model is one.
    """

    target_modules: Names | None = None
    exclude_modules: Names | None = None
    modules_to_save: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_types(self)

    def new_adapter(self, model: nn.Module) -> "SelectiveAdapter":
        """Build a new adapter with these settings for `model`, which is not changed."""
        names = [f"{path}.{name}" for path, layer in _target_layers(model, self).items() for name, _ in _own(layer)]
        adapter = _new_adapter(model, self, names)
        adapter.modules = copies_to_save(model, self.modules_to_save)
        return adapter


@dataclass
class SelectiveAdapter:
    """Trained copies of parameters of the base. A parameter with several names (a tied weight) has one copy."""

    config: SelectiveConfig | LNTuningConfig
    copies: dict[str, nn.Parameter]
    """Name in the ungrafted model -> copy."""
    dtypes: dict[str, torch.dtype]
    """Name -> dtype of the base's parameter."""
    modules: dict[str, nn.Module] = field(default_factory=dict)
    """Modules that train as a whole, by name; only for normalisation layers, as in PEFT."""

    def attach(self, model: nn.Module, undo: list[Undo]) -> None:
        """Replace the selected parameters and modules of the base by the adapter's copies.

        Layers of copied parameters compute in the base's dtypes. What undoes each replacement is appended to `undo`.
        """
        for path, own in self.copies.items():
            replace_parameter(model, path, own, undo)
        casts: dict[int, tuple[nn.Module, dict[str, torch.dtype]]] = {}
        for path, own in self.copies.items():
            if own.dtype != self.dtypes[path]:
                owner, name = parameter_owner(model, path)
                casts.setdefault(id(owner), (owner, {}))[1][name] = self.dtypes[path]
        for owner, dtypes in casts.values():
            cast_parameters(owner, dtypes, undo)
        for path, module in self.modules.items():
            replace_module(model, path, module, undo)

    def weight_updates(self, model: nn.Module) -> dict[str, WeightUpdate]:
        """Replace the selected parameters by the trained ones."""
        updates = {id(own): replace_with(own) for own in self.copies.values()}
        return {path: updates[id(own)] for path, own in self.copies.items()} | module_updates(self.modules)


def _new_adapter(model: nn.Module, config: SelectiveConfig | LNTuningConfig, names: Sequence[str]) -> SelectiveAdapter:
    parameters = base_parameters(model)
    selected = {name: parameters[name] for name in names}
    check_trained_parameters(model, selected)
    copies: dict[int, nn.Parameter] = {}
    for parameter in selected.values():
        dtype = at_least_float32(parameter.dtype)
        copies.setdefault(id(parameter), nn.Parameter(parameter.detach().to(dtype, copy=True)))
    return SelectiveAdapter(
        config,
        {name: copies[id(parameter)] for name, parameter in selected.items()},
        {name: parameter.dtype for name, parameter in selected.items()},
    )


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return every parameter by its name in the ungrafted model; a shared parameter by each of its names."""
    return {
        f"{path}.{name}" if path else name: parameter
        for path, layer in [("", model), *base_modules(model)]
        for name, parameter in _own(layer)
    }


def _own(layer: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters of the layer itself, without those of its children and without quantised weights."""
    own = [(name, parameter) for name, parameter in layer._parameters.items() if parameter is not None]
    return [(name, parameter) for name, parameter in own if name == "bias" or not is_quantized(layer)]


def _selected_parameters(model: nn.Module, config: SelectiveConfig) -> list[str]:
    parameters, wanted = base_parameters(model), config.target_parameters
    assert wanted
    if wanted == HEAD:
        return _head_parameters(model)
    found = [name for name in parameters if matches(name, wanted)]
    setting = f"target_parameters={_as_text(wanted)}"
    if not found:
        hint = _("; a string is a regular expression for the whole name, a list has endings") * isinstance(wanted, str)
        raise TsugikiError(
            "{setting} matches no parameter of this model{hint}; it has {endings}",
            setting=setting,
            hint=hint,
            endings=_endings(parameters),
        )
    if {id(parameters[name]) for name in found} == {id(parameter) for parameter in parameters.values()}:
        raise TsugikiError("{setting} matches every parameter: that is method full", setting=setting)
    return found


def _head_parameters(model: nn.Module) -> list[str]:
    head = output_head(model)
    if head is None:
        raise TsugikiError(
            "a {kind} does not say which layer is its output head; name the head's parameters with method select",
            kind=type(model).__name__,
        )
    if not _own(head):
        raise TsugikiError("the output head is quantised and cannot train; load the base unquantised")
    return [f"{path}.{name}" for path, layer in base_modules(model) if layer is head for name, _ in _own(layer)]


def _target_layers(model: nn.Module, config: LNTuningConfig) -> dict[str, nn.Module]:
    """Return the layers that train, by name."""
    layers, wanted = dict(base_modules(model)), config.target_modules
    found = {
        name: layer
        for name, layer in layers.items()
        if (_is_norm(layer) if wanted is None else matches(name, wanted))
        and not (config.exclude_modules and matches(name, config.exclude_modules))
    }
    if not found:
        norms = sorted({name.rpartition(".")[2] for name, layer in layers.items() if _is_norm(layer)})
        hint = (
            _("its normalisation layers end in {norms}", norms=", ".join(norms))
            if norms
            else _("it has no normalisation layer")
        )
        if wanted is None:
            raise TsugikiError("nothing to train in this model: {hint}", hint=hint)
        raise TsugikiError(
            "target_modules={targets} matches no layer of this model; {hint}", targets=_as_text(wanted), hint=hint
        )
    wrong = [name for name, layer in found.items() if not _own(layer) or any(True for _ in layer.children())]
    if wrong:
        raise TsugikiError(
            "target_modules={targets} matches {path}, a {kind}, which is not a single layer with parameters; "
            "method select selects parameters by any pattern",
            targets=_as_text(wanted),
            path=wrong[0],
            kind=type(found[wrong[0]]).__name__,
        )
    return found


def _is_norm(layer: nn.Module) -> bool:
    """Return whether this is a normalisation layer with parameters, by the name of its class."""
    return "norm" in type(layer).__name__.lower() and bool(_own(layer)) and not any(True for _ in layer.children())


def _as_text(wanted: Names | None) -> str:
    return wanted if isinstance(wanted, str) else ", ".join(wanted or ())


def _endings(names: Iterable[str]) -> str:
    """List the last two components of the names, each combination once, for a message."""
    endings = sorted({".".join(name.rsplit(".", 2)[-2:]) for name in names})
    more = _(" and {count} more", count=len(endings) - _MAX_NAMES) if len(endings) > _MAX_NAMES else ""
    return ", ".join(endings[:_MAX_NAMES]) + more


def _tensors(model: nn.Module, adapter: SelectiveAdapter) -> dict[str, Tensor]:
    return {f"{PREFIX}{path}": own for path, own in with_first_names(adapter.copies).items()}


def _ln_tensors(model: nn.Module, adapter: SelectiveAdapter) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path, own in adapter.copies.items():
        layer, _dot, name = path.rpartition(".")
        tensors[f"{PREFIX}{layer}.ln_tuning_layers.{name}"] = own
    return tensors | saved_tensors(adapter.modules, PREFIX)


def _to_json(model: nn.Module, adapter: SelectiveAdapter) -> dict[str, Any]:
    return dataclasses.asdict(adapter.config)


def _ln_to_json(model: nn.Module, adapter: SelectiveAdapter) -> dict[str, Any]:
    fields = dataclasses.asdict(adapter.config)
    if fields["target_modules"] is None:
        layers = {path.rpartition(".")[0] for path in adapter.copies}
        others = (path for path, _ in base_modules(model) if path not in layers)
        fields["target_modules"] = shortest_endings(layers, others)
    return {**fields, "modules_to_save": names_for_file(model, adapter.modules)}


SELECTIVE = AdapterFormat(
    "TSUGIKI_SELECTIVE", SelectiveConfig, _tensors, _to_json, partial(read_fields, SelectiveConfig)
)
LN_TUNING = AdapterFormat(
    "LN_TUNING",
    LNTuningConfig,
    _ln_tensors,
    _ln_to_json,
    partial(read_fields, LNTuningConfig),
    build_for=build_with_saved_modules,
)
