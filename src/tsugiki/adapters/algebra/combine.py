"""Several adapters of one base as one, in the ways of PEFT's `add_weighted_adapter` and under its names.

With w the weights, s the adapters' scalings and ΔW = s · B A:

    cat      Σ w ΔW exactly: the A's below each other, the B's beside each other; the ranks add up
    svd      the best approximation of Σ w ΔW that has one rank
    linear   (Σ √|ws| B) (Σ sign(w) √|ws| A): no larger than one adapter is, but not the sum of their updates, since the
             products of one's B with another's A are in it; of two adapters that share an A it is up to twice the sum
    magnitude_prune, dare_linear, ties, dare_ties
             the A's and the B's as for linear, thinned out first, or summed otherwise (see `interference`)
    magnitude_prune_svd, dare_linear_svd, ties_svd, dare_ties_svd
             the same done to the updates ΔW, as the papers mean it, and then the best approximation that has one rank;
             the updates of one layer at a time are formed for that

A layer that only some adapters have is combined of those. Results are in float32, with a scaling of 1.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from torch import Generator, Tensor

from tsugiki.adapters.algebra.interference import RULES, apply_rule
from tsugiki.adapters.algebra.matrices import balanced, matrices, with_matrices
from tsugiki.adapters.algebra.spectrum import update_norm
from tsugiki.adapters.algebra.truncate import truncated
from tsugiki.adapters.lora_weights import LayerFactors, LoraWeights, read_lora_weights
from tsugiki.errors import TsugikiError
from tsugiki.lora.config import LoraConfig

Track: TypeAlias = Callable[[Sequence[str]], Iterable[str]]
"""Goes through layers' names, and shows how far it is."""

TYPES = ("cat", "svd", *RULES, *(f"{rule}_svd" for rule in RULES if rule != "linear"))
"""PEFT's combination types."""


@dataclass(frozen=True)
class Combination:
    """How adapters are combined.

    Args:
        combination_type: one of `TYPES`.
        rank: of the result, where the type is an svd's; the highest of the adapters' ranks where nothing is said.
        density: the share of elements that stay, where the type thins out.
        seed: of the elements that dare drops.

    Raises:
        TsugikiError: no such type, a number that cannot be meant, or one that is missing or not of this type.
    """

    combination_type: str = "cat"
    rank: int | None = None
    density: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        kind = self.combination_type
        if kind not in TYPES:
            raise TsugikiError(f"no way to combine is called {kind!r}; there are {', '.join(TYPES)}")
        if self.rank is not None and not kind.endswith("svd"):
            instead = "svd" if kind in ("cat", "linear") else f"{kind}_svd"
            raise TsugikiError(f"{kind} leaves no rank to choose; {instead} makes a result of rank {self.rank}")
        if self.rank is not None and self.rank < 1:
            raise TsugikiError(f"rank is {self.rank}; a rank is a whole number of at least 1")
        thins = RULES.get(self.rule, (None,))[0] is not None
        if thins and self.density is None:
            raise TsugikiError(f"{kind} asks for a density, the share of elements that stay, such as 0.2")
        if not thins and self.density is not None:
            raise TsugikiError(f"{kind} keeps all elements and has no density; leave it out")
        if self.density is not None and not 0 < self.density <= 1:
            raise TsugikiError(f"density is {self.density}; it is the share of elements that stay, above 0, at most 1")

    @property
    def rule(self) -> str:
        """Its name in `RULES`, if it has one."""
        return self.combination_type.removesuffix("_svd")


@dataclass(frozen=True, eq=False)
class Part:
    """One of the adapters that are combined."""

    name: str
    """What messages call it."""
    lora: LoraWeights
    weight: float
    """May be negative."""


class _Term(NamedTuple):
    """What one part brings to one layer."""

    part: str
    layer: LayerFactors
    weight: float


def load_weighted_adapters(folders: Sequence[Path], weights: Sequence[float]) -> list[Part]:
    """Adapters from their folders.

    Raises:
        TsugikiError: as for `read_lora_weights`, or there are not as many weights as folders.
    """
    if len(folders) != len(weights):
        raise TsugikiError(f"there are {len(folders)} adapters and {len(weights)} weights; give each adapter one")
    return [
        Part(folder.name, read_lora_weights(folder), weight) for folder, weight in zip(folders, weights, strict=True)
    ]


@torch.no_grad()
def combine(
    parts: Sequence[Part], how: Combination, *, allow_base_mismatch: bool = False, track: Track = iter
) -> LoraWeights:
    """One adapter of several.

    Args:
        parts: one at least.
        how: in which way.
        allow_base_mismatch: combine adapters of different bases; the result names the base of the first.
        track: goes through the layers.

    Raises:
        TsugikiError: they are of different bases, or their layers of different shapes or, where that matters, ranks; or
            one is more than its updates (DoRA, trained biases or modules).
    """
    for part in parts:
        if not math.isfinite(part.weight):
            raise TsugikiError(f"the weight of {part.name} is {part.weight}, no finite number")
        refuse_more_than_updates(part.lora, part.name)
    if not allow_base_mismatch:
        _refuse_other_bases(parts)
    terms = _terms(parts)
    rank = how.rank or max(term.layer.r for layer in terms.values() for term in layer)
    generator = Generator().manual_seed(how.seed)
    layers = {}
    for path in track(list(terms)):
        if how.combination_type in ("cat", "svd"):
            layers[path] = _side_by_side(terms[path])
        elif how.combination_type.endswith("_svd"):
            layers[path] = _of_updates(terms[path], how, generator, rank)
        else:
            _refuse_other_ranks(path, terms[path], how.combination_type)
            layers[path] = _of_factors(terms[path], how, generator)
    base = next((part.lora.base for part in parts if part.lora.base.fingerprint), parts[0].lora.base)
    config = _config([part.lora.config for part in parts], list(layers))
    lora = LoraWeights(config, layers, {}, base, parts[0].lora.task_type)
    return truncated(lora, rank)[0] if how.combination_type == "svd" else lora


def norm(lora: LoraWeights) -> float:
    """‖ΔW‖ over all layers, the root of the sum of all elements' squares."""
    return math.hypot(*map(update_norm, lora.layers.values()))


def distance(one: LoraWeights, two: LoraWeights) -> float:
    """‖ΔW - ΔW'‖ over all layers of two adapters of one base."""
    difference = [Part("one", one, 1.0), Part("the other", two, -1.0)]
    return norm(combine(difference, Combination("cat"), allow_base_mismatch=True))


def scaled(lora: LoraWeights, factor: float) -> LoraWeights:
    """factor · ΔW in every layer; -1 takes what was learned away from the base. A's and B's keep their dtype.

    Raises:
        TsugikiError: the factor is 0, not finite or too large, or the adapter is more than its updates.
    """
    if not math.isfinite(factor) or factor == 0:
        raise TsugikiError(f"an adapter cannot be scaled by {factor}; give a finite number other than 0")
    refuse_more_than_updates(lora, "the adapter")
    layers = {
        path: dataclasses.replace(layer, B=layer.B if factor > 0 else -layer.B, scaling=layer.scaling * abs(factor))
        for path, layer in lora.layers.items()
    }
    result = dataclasses.replace(lora, layers=layers)
    if not norm(result) < torch.finfo(torch.float32).max:
        raise TsugikiError(f"scaled by {factor} the update is more than float32 can hold; give a smaller number")
    return result


def refuse_more_than_updates(lora: LoraWeights, name: str) -> None:
    """Ask that an adapter is ΔW of its layers and nothing else, so that it can be added up.

    Raises:
        TsugikiError: it is not; the message calls it `name`.
    """
    if lora.config.use_dora:
        raise TsugikiError(f"{name} is a DoRA adapter, whose lengths of rows cannot be added up or scaled")
    if lora.others:
        raise TsugikiError(
            f"{name} also trains {next(iter(lora.others))} ({len(lora.others)} such), which takes the place of the "
            "base's and cannot be added up or scaled"
        )


def _refuse_other_bases(parts: Sequence[Part]) -> None:
    for one, two in itertools.combinations(parts, 2):
        a, b = one.lora.base, two.lora.base
        if a.fingerprint and b.fingerprint:
            differ, why = a.fingerprint != b.fingerprint, "their weights differ"
        else:
            differ, why = bool(a.name and b.name and a.name != b.name), "whether their weights differ is not said"
        if differ:
            raise TsugikiError(
                f"{one.name} and {two.name} were trained on different bases ({a.name} and {b.name}; {why}); "
                "--allow-base-mismatch combines them all the same"
            )


def _terms(parts: Sequence[Part]) -> dict[str, list[_Term]]:
    """What there is for each layer, by its name, in the order of names."""
    terms: dict[str, list[_Term]] = {}
    for part in parts:
        for path, layer in part.lora.layers.items():
            term = _Term(part.name, layer, part.weight)
            first = terms.setdefault(path, [term])[0]
            if _shape(first.layer) != _shape(layer):
                raise TsugikiError(
                    f"{path} is {_described(first.layer)} in {first.part} and {_described(layer)} in {part.name}: "
                    "they are of different bases"
                )
            if first is not term:
                terms[path].append(term)
    return dict(sorted(terms.items()))


def _shape(layer: LayerFactors) -> tuple[object, ...]:
    """All that must be the same for two updates of a layer to be added up."""
    return len(layer.B), *layer.A.shape[1:], layer.r // layer.B.shape[1], layer.embedding


def _described(layer: LayerFactors) -> str:
    shape = f"{[len(layer.B), *layer.A.shape[1:]]}"
    return f"an embedding {shape}" if layer.embedding else shape


def _refuse_other_ranks(path: str, terms: Sequence[_Term], kind: str) -> None:
    first = terms[0]
    for term in terms:
        if term.layer.r != first.layer.r:
            raise TsugikiError(
                f"{kind} adds up A's and B's of one rank, and {path} has rank {first.layer.r} in {first.part} and "
                f"{term.layer.r} in {term.part}; use cat (exact) or {'' if kind == 'linear' else f'{kind}_'}svd"
            )


def _side_by_side(terms: Sequence[_Term]) -> LayerFactors:
    """Σ w ΔW as one pair."""
    pairs = [matrices(term.layer) for term in terms]
    B = torch.cat([term.weight * term.layer.scaling * B for term, (B, _) in zip(terms, pairs, strict=True)], 2)
    return with_matrices(terms[0].layer, B, torch.cat([A for _, A in pairs], 1), 1.0)


def _of_factors(terms: Sequence[_Term], how: Combination, generator: Generator) -> LayerFactors:
    factors = [term.weight * term.layer.scaling for term in terms]
    roots = [math.sqrt(abs(factor)) for factor in factors]
    signed = [math.copysign(root, factor) for root, factor in zip(roots, factors, strict=True)]
    A = apply_rule(how.rule, [term.layer.A.float() for term in terms], signed, how.density, generator)
    B = apply_rule(how.rule, [term.layer.B.float() for term in terms], roots, how.density, generator)
    return dataclasses.replace(terms[0].layer, A=A, B=B, scaling=1.0)


def _of_updates(terms: Sequence[_Term], how: Combination, generator: Generator, rank: int) -> LayerFactors:
    def update(layer: LayerFactors) -> Tensor:
        B, A = matrices(layer)
        return layer.scaling * (B.float() @ A.float())

    updates = [update(term.layer) for term in terms]
    total = apply_rule(how.rule, updates, [term.weight for term in terms], how.density, generator)
    U, S, Vh = torch.linalg.svd(total, full_matrices=False)
    return with_matrices(terms[0].layer, *balanced(U, S, Vh, max(1, rank // len(total))), 1.0)


def _config(configs: Sequence[LoraConfig], paths: Sequence[str]) -> LoraConfig:
    """The first's, so that it finds these layers and no others of the base."""
    first = dataclasses.replace(configs[0], fan_in_fan_out=any(config.fan_in_fan_out for config in configs))
    targets = [config.target_modules for config in configs]
    if all(_narrowed(config) == _narrowed(first) for config in configs):
        if all(target == first.target_modules for target in targets):
            return first
        lists = [target for target in targets if target is not None and not isinstance(target, str)]
        if len(lists) == len(targets):
            return dataclasses.replace(first, target_modules=sorted(set().union(*lists)))
    return dataclasses.replace(
        first, target_modules=list(paths), exclude_modules=None, layers_to_transform=None, layers_pattern=None
    )


def _narrowed(config: LoraConfig) -> tuple[object, ...]:
    """What else than `target_modules` says which layers are meant."""
    return config.exclude_modules, config.layers_to_transform, config.layers_pattern
