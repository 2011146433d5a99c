"""Selective methods: some of the base's own parameters train, on copies, and nothing is added.

    y = f(x; θ_S + Δ, θ_rest)        S: the chosen parameters, each trained whole; the rest is frozen

    bitfit   S = the biases, [out] of each layer        Ben Zaken et al. 2021, arXiv:2106.10199
    norms    S = the weights (and biases) of the normalisation layers, [width] each
                                                        Zhao et al. 2023, arXiv:2312.11420
    head     S = the output head, [vocabulary, width]
    select   S = whatever a pattern of parameter names says, such as the last block

While the adapter is attached its copies stand in the places of the base's parameters, which are never edited; merged,
they are the model's parameters, at no cost. Copies are kept in float32, and a base in 16 bits computes with them
rounded to its own type.

The trade-off: nothing is added, so the model is as fast as before, and biases or norms are a thousandth of it; but what
they can express is bounded, rank does not raise it, and many models (Llama and its kin) have no biases at all. The head
is one large matrix, which can only tell words apart by what the layers below it see already.

In the file, `norms` is PEFT's LN_TUNING; the others are Tsugiki's own, which PEFT refuses:

    base_model.model.<module path>.ln_tuning_layers.<name>    (norms)
    base_model.model.<parameter path>                         (the others; of parameters that are one, the first)
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tsugiki.dtypes import at_least_float32
from tsugiki.errors import TsugikiError
from tsugiki.lora.names import check_names, matches, shortest_endings
from tsugiki.lora.swap import (
    Undo,
    WeightUpdate,
    cast_parameters,
    parameter_owner,
    replace_parameter,
    replace_with,
    warn_untied_weights,
)
from tsugiki.lora.targets import base_modules, find_modules, output_head
from tsugiki.methods.method import PREFIX, AdapterFormat, read_fields

HEAD = "head"
"""As `target_parameters`: those of the output head, whatever it is called."""
_SHOWN = 12  # names in a message


@dataclass(frozen=True)
class SelectiveConfig:
    """Settings of an adapter that trains chosen parameters of the base.

    Args:
        target_parameters: which. A list holds names or name endings (`bias` finds every `….bias`); a string is a
            regular expression for the whole name (`.*\\.h\\.3\\..*`: all of a block), or "head" for the output head.

    Raises:
        TsugikiError: a value that cannot be meant.
    """

    target_parameters: Sequence[str] | str | None = None

    def __post_init__(self) -> None:
        check_names("target_parameters", self.target_parameters)
        if not self.target_parameters:
            raise TsugikiError(
                "target_parameters is empty; name what is to train: [name endings], or a regular expression"
            )

    def new_adapter(self, model: nn.Module) -> "SelectiveAdapter":
        """A fresh adapter with these settings for `model`, which stays as it is.

        Raises:
            TsugikiError: the settings match nothing in the model, everything, or what cannot train.
        """
        return _new_adapter(model, self, _chosen(model, self))


@dataclass(frozen=True)
class LNTuningConfig:
    """Settings of an adapter that trains normalisation layers, named as in PEFT's `LNTuningConfig`.

    Args:
        target_modules: which layers. A list holds names or name endings, a string is a regular expression for the
            whole name. None: every normalisation layer.
        exclude_modules: layers left out although `target_modules` finds them; matched the same way.

    Raises:
        TsugikiError: a value that cannot be meant.
    """

    target_modules: Sequence[str] | str | None = None
    exclude_modules: Sequence[str] | str | None = None

    def __post_init__(self) -> None:
        check_names("target_modules", self.target_modules)
        check_names("exclude_modules", self.exclude_modules)

    def new_adapter(self, model: nn.Module) -> "SelectiveAdapter":
        """A fresh adapter with these settings for `model`, which stays as it is.

        Raises:
            TsugikiError: the settings match nothing in the model, or what is no single layer.
        """
        names = [f"{path}.{name}" for path, layer in _norms(model, self).items() for name, _ in _own(layer)]
        return _new_adapter(model, self, names)


@dataclass
class SelectiveAdapter:
    """Copies of parameters of the base, by name before any graft; parameters that are one have one copy."""

    config: SelectiveConfig | LNTuningConfig
    copies: dict[str, nn.Parameter]
    dtypes: dict[str, torch.dtype]
    """What the base holds each in."""
    wrapped: frozenset[str] = field(default_factory=frozenset)

    def attach(self, model: nn.Module) -> list[Undo]:
        """Put the copies in the places of the base's parameters."""
        undo = [replace_parameter(model, path, own) for path, own in self.copies.items()]
        narrow: dict[int, tuple[nn.Module, dict[str, torch.dtype]]] = {}
        for path, own in self.copies.items():
            if own.dtype != self.dtypes[path]:
                owner, name = parameter_owner(model, path)
                narrow.setdefault(id(owner), (owner, {}))[1][name] = self.dtypes[path]
        return undo + [cast_parameters(owner, dtypes) for owner, dtypes in narrow.values()]

    def weight_updates(self, model: nn.Module) -> dict[str, WeightUpdate]:
        """Replace the chosen parameters by the trained ones."""
        made = {id(own): replace_with(own) for own in self.copies.values()}
        return {path: made[id(own)] for path, own in self.copies.items()}


def _new_adapter(model: nn.Module, config: SelectiveConfig | LNTuningConfig, names: Sequence[str]) -> SelectiveAdapter:
    every = base_parameters(model)
    chosen = {name: every[name] for name in names}
    coded = [name for name, parameter in chosen.items() if not parameter.is_floating_point()]
    if coded:
        raise TsugikiError(f"{coded[0]} is held in few bits and cannot train; load the base as it is stored")
    warn_untied_weights(model, chosen)
    copies: dict[int, nn.Parameter] = {}
    for parameter in chosen.values():
        dtype = at_least_float32(parameter.dtype)
        copies.setdefault(id(parameter), nn.Parameter(parameter.detach().to(dtype, copy=True)))
    return SelectiveAdapter(
        config,
        {name: copies[id(parameter)] for name, parameter in chosen.items()},
        {name: parameter.dtype for name, parameter in chosen.items()},
    )


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter by its name before any graft; one that stands in several places, by each of its names."""
    return {
        f"{path}.{name}" if path else name: parameter
        for path, layer in [("", model), *base_modules(model)]
        for name, parameter in _own(layer)
    }


def _own(layer: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in layer._parameters.items() if parameter is not None]


def _chosen(model: nn.Module, config: SelectiveConfig) -> list[str]:
    every, wanted = base_parameters(model), config.target_parameters
    assert wanted
    if wanted == HEAD:
        return _of_the_head(model)
    found = [name for name in every if matches(name, wanted)]
    if not found:
        hint = "; a string is a regular expression for a whole name, a list holds endings" * isinstance(wanted, str)
        raise TsugikiError(f"{_shown(wanted)} matches no parameter of this model{hint}; it has {_endings(every)}")
    if {id(every[name]) for name in found} == {id(parameter) for parameter in every.values()}:
        raise TsugikiError(f"{_shown(wanted)} matches every parameter: that is method full")
    return found


def _of_the_head(model: nn.Module) -> list[str]:
    head = output_head(model)
    if head is None:
        raise TsugikiError(f"a {type(model).__name__} names no output head; name its parameters with method select")
    if not _own(head):
        raise TsugikiError("the output head is held in few bits and cannot train; load the base as it is stored")
    return [f"{path}.{name}" for path, layer in base_modules(model) if layer is head for name, _ in _own(layer)]


def _norms(model: nn.Module, config: LNTuningConfig) -> dict[str, nn.Module]:
    """The layers that train, by name."""
    layers, wanted = dict(base_modules(model)), config.target_modules
    found = {
        name: layer
        for name, layer in layers.items()
        if (_is_norm(layer) if wanted is None else matches(name, wanted))
        and not (config.exclude_modules and matches(name, config.exclude_modules))
    }
    if not found:
        norms = sorted({name.rpartition(".")[2] for name, layer in layers.items() if _is_norm(layer)})
        there = f"its normalisation layers end in {', '.join(norms)}" if norms else "it has no normalisation layer"
        named = "" if wanted is None else f"target_modules={_plain(wanted)} matches no layer of this model; "
        raise TsugikiError(f"{named}{there}" if named else f"nothing to train in this model: {there}")
    wrong = [name for name, layer in found.items() if not _own(layer) or any(True for _ in layer.children())]
    if wrong:
        raise TsugikiError(
            f"target_modules={_plain(wanted)} matches {wrong[0]}, a {type(found[wrong[0]]).__name__}, which is no "
            "single layer with parameters; method select takes parameters by any pattern"
        )
    return found


def _is_norm(layer: nn.Module) -> bool:
    """Whether this is a normalisation layer with parameters, known by the name of its class."""
    return "norm" in type(layer).__name__.lower() and bool(_own(layer)) and not any(True for _ in layer.children())


def _shown(wanted: Sequence[str] | str) -> str:
    return f"target_parameters={_plain(wanted)}"


def _plain(wanted: Sequence[str] | str | None) -> str:
    return wanted if isinstance(wanted, str) else ", ".join(wanted or ())


def _endings(names: Mapping[str, object]) -> str:
    """The last two parts of these names, each once."""
    endings = sorted({".".join(name.rsplit(".", 2)[-2:]) for name in names})
    more = f" and {len(endings) - _SHOWN} more" if len(endings) > _SHOWN else ""
    return ", ".join(endings[:_SHOWN]) + more


def _tensors(model: nn.Module, adapter: SelectiveAdapter) -> dict[str, Tensor]:
    first: dict[int, str] = {}
    for path, own in adapter.copies.items():
        first.setdefault(id(own), path)
    return {f"{PREFIX}{path}": adapter.copies[path] for path in first.values()}


def _ln_tensors(model: nn.Module, adapter: SelectiveAdapter) -> dict[str, Tensor]:
    split = {path: path.rpartition(".") for path in adapter.copies}
    return {
        f"{PREFIX}{layer}.ln_tuning_layers.{name}": adapter.copies[path] for path, (layer, _, name) in split.items()
    }


def _to_json(model: nn.Module, adapter: SelectiveAdapter) -> dict[str, Any]:
    return dataclasses.asdict(adapter.config)


def _ln_to_json(model: nn.Module, adapter: SelectiveAdapter) -> dict[str, Any]:
    fields = dataclasses.asdict(adapter.config)
    if fields["target_modules"] is None:
        layers = {path.rpartition(".")[0] for path in adapter.copies}
        fields["target_modules"] = shortest_endings(layers, lambda endings: find_modules(model, endings))
    return {**fields, "modules_to_save": None}


SELECTIVE = AdapterFormat(
    "TSUGIKI_SELECTIVE", SelectiveConfig, _tensors, _to_json, partial(read_fields, SelectiveConfig)
)
LN_TUNING = AdapterFormat("LN_TUNING", LNTuningConfig, _ln_tensors, _ln_to_json, partial(read_fields, LNTuningConfig))
