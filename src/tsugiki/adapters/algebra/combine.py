"""Combine several adapters of one base into one.

With the weights w, the adapters' scalings s, and ΔW = s · B A:

    Σ w ΔW exactly: the rows of all A's and the columns of all B's are concatenated, so the ranks add up

This is "cat" of PEFT's `add_weighted_adapter`; `matrices.truncated` of the result is its "svd". Each layer is combined
from the adapters that have it. Results are in float32, with a scaling of 1.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch

from tsugiki.adapters.algebra.matrices import concatenate, matrices, update_norm, with_matrices
from tsugiki.adapters.lora_weights import (
    LayerFactors,
    LoraWeights,
    parameter_factors,
    read_lora_weights,
    write_lora_weights,
)
from tsugiki.adapters.metadata import Provenance, source_adapter
from tsugiki.base.identity import why_different
from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig
from tsugiki.model.names import matches

ProgressIterator: TypeAlias = Callable[[Sequence[str]], Iterable[str]]
"""Iterates over the names of layers and shows the progress; `iter` shows nothing."""


@dataclass(frozen=True, eq=False)
class WeightedAdapter:
    """An adapter to combine, with the factor on its update."""

    name: str
    lora: LoraWeights
    weight: float
    """A negative weight subtracts the update."""


class _Term(NamedTuple):
    """The update of one layer in one adapter."""

    adapter: str
    layer: LayerFactors
    weight: float


def weights_or_ones(weights: Sequence[float] | None, count: int) -> list[float]:
    """Return the factors on the updates of `count` adapters: the given weights, or 1 for each adapter."""
    if weights is None:
        return [1.0] * count
    if len(weights) != count or not all(map(math.isfinite, weights)):
        shown = ", ".join(f"{weight:g}" for weight in weights)
        raise TsugikiError(
            "the weights are {shown}; pass one finite number for each of the {count} adapters", shown=shown, count=count
        )
    return list(weights)


def load_weighted_adapters(folders: Sequence[Path], weights: Sequence[float] | None) -> list[WeightedAdapter]:
    """Read adapters from their folders; without weights, each is 1."""
    return [
        WeightedAdapter(folder.name, read_lora_weights(folder), weight)
        for folder, weight in zip(folders, weights_or_ones(weights, len(folders)), strict=True)
    ]


@torch.no_grad()
def combine(
    adapters: Sequence[WeightedAdapter],
    *,
    allow_base_mismatch: bool = False,
    track: ProgressIterator = iter,
) -> LoraWeights:
    """Combine at least one adapter into one.

    With `allow_base_mismatch`, adapters of different bases are combined, and the result names the base of the first.
    The adapters must have nothing but updates of layers, of the same shapes.
    """
    for adapter in adapters:
        refuse_more_than_updates(adapter.lora, adapter.name)
    if not allow_base_mismatch:
        _refuse_different_bases(adapters)
    terms = _terms(adapters)
    layers = {path: _exact_sum(terms[path]) for path in track(list(terms))}
    bases = [adapter.lora.base for adapter in adapters]
    base = next((base for base in bases if base.fingerprint), bases[0])
    config = _config([adapter.lora.config for adapter in adapters], list(layers))
    return LoraWeights(config, layers, {}, base, adapters[0].lora.task_type)


def write_combined(lora: LoraWeights, out: Path, folders: Sequence[Path], weights: Sequence[float]) -> None:
    """Write the result of `combine` into a new folder, with a record of its source adapters."""
    sources = tuple(source_adapter(folder, weight) for folder, weight in zip(folders, weights, strict=True))
    write_lora_weights(lora, out, Provenance(operation="combine", sources=sources))


def norm(lora: LoraWeights) -> float:
    """Compute ‖ΔW‖, the root of the sum of squares over all layers."""
    return math.hypot(*map(update_norm, lora.layers.values()))


def refuse_more_than_updates(lora: LoraWeights, name: str) -> None:
    """Raise a TsugikiError unless an adapter has only low-rank updates of layers, which can be added and scaled."""
    if lora.config.use_dora:
        raise TsugikiError("{name} is a DoRA adapter, whose magnitudes cannot be added or scaled", name=name)
    experts = parameter_factors(lora.others)
    if experts:
        raise TsugikiError(
            "{name} adapts parameters such as the weights of experts ({example}, {count} such tensors), and "
            "only updates of layers can be added or scaled; merge it into the base",
            name=name,
            example=experts[0],
            count=len(experts),
        )
    if lora.others:
        raise TsugikiError(
            "{name} also trains {example} ({count} such tensors), which replaces a parameter of the base and "
            "cannot be added or scaled",
            name=name,
            example=next(iter(lora.others)),
            count=len(lora.others),
        )


def _refuse_different_bases(adapters: Sequence[WeightedAdapter]) -> None:
    for one, two in itertools.combinations(adapters, 2):
        a, b = one.lora.base, two.lora.base
        why = why_different(a, b)
        if not (a.fingerprint and b.fingerprint) and a.name and b.name and a.name != b.name:
            why = _("whether their weights differ is unknown")
        if why:
            raise TsugikiError(
                "{one} and {two} were trained on different bases ({first} and {second}; {why}); "
                "{flag:allow_base_mismatch} combines them anyway",
                one=one.name,
                two=two.name,
                first=a.name,
                second=b.name,
                why=why,
            )


def _terms(adapters: Sequence[WeightedAdapter]) -> dict[str, list[_Term]]:
    """Return the updates of each layer, by the layer's name, sorted by name."""
    terms: dict[str, list[_Term]] = {}
    for adapter in adapters:
        for path, layer in adapter.lora.layers.items():
            term = _Term(adapter.name, layer, adapter.weight)
            first = terms.setdefault(path, [term])[0]
            if _shape(first.layer) != _shape(layer):
                raise TsugikiError(
                    "{path} is {described} in {first} and {other} in {second}: they are of different bases",
                    path=path,
                    described=_described(first.layer),
                    first=first.adapter,
                    other=_described(layer),
                    second=adapter.name,
                )
            if first is not term:
                terms[path].append(term)
    return dict(sorted(terms.items()))


def _shape(layer: LayerFactors) -> tuple[object, ...]:
    """Return the properties that must be equal in two updates of a layer so that they can be added."""
    return len(layer.B), *layer.A.shape[1:], layer.r // layer.B.shape[1], layer.embedding


def _described(layer: LayerFactors) -> str:
    shape = f"{[len(layer.B), *layer.A.shape[1:]]}"
    return _("an embedding {shape}", shape=shape) if layer.embedding else shape


def _exact_sum(terms: Sequence[_Term]) -> LayerFactors:
    B, A = concatenate([matrices(term.layer) for term in terms], [term.weight * term.layer.scaling for term in terms])
    return with_matrices(terms[0].layer, B, A, 1.0)


def _config(configs: Sequence[LoraConfig], paths: Sequence[str]) -> LoraConfig:
    """Return the first config, with targets that select these layers and no others of the base."""
    first = dataclasses.replace(configs[0], fan_in_fan_out=any(config.fan_in_fan_out for config in configs))
    targets = [config.target_modules for config in configs]
    if all(_other_selectors(config) == _other_selectors(first) for config in configs):
        if all(target == first.target_modules for target in targets):
            return first
        lists = [target for target in targets if target is not None and not isinstance(target, str)]
        if len(lists) == len(targets):
            return dataclasses.replace(first, target_modules=sorted(set().union(*lists)))
    # PEFT would misread the name of a layer in `target_modules` if one of the files has it as a parameter.
    named = [name for config in configs for name in config.target_parameters or ()]
    weights = {path: f"{path}.weight" for path in paths if matches(f"{path}.weight", named)}
    return dataclasses.replace(
        first,
        target_modules=[path for path in paths if path not in weights],
        target_parameters=list(weights.values()) or None,
        lora_dropout=0.0 if weights else first.lora_dropout,
        exclude_modules=None,
        layers_to_transform=None,
        layers_pattern=None,
    )


def _other_selectors(config: LoraConfig) -> tuple[object, ...]:
    """Return the settings besides `target_modules` that select layers."""
    return config.exclude_modules, config.layers_to_transform, config.layers_pattern, config.target_parameters
