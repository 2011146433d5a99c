"""Sums of tensors that several adapters hold in the same place, and what thins out their interference first.

    magnitude_prune   the largest elements of each
    dare              random elements of each, divided by the density      Yu et al. 2023, arXiv:2311.03099
    ties              the largest of each, and then for each place the mean over those tensors alone whose sign there is
                      that of the sum of all                               Yadav et al. 2023, arXiv:2306.01708

The density is the share of elements that stay. Numbers, and the order in which they are drawn, are as in PEFT's
`merge_utils`; so the sum that ties takes the sign of is without weights, and its mean is of the weighted tensors, by
their count.
"""

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Generator, Tensor

Thin: TypeAlias = Callable[[Tensor, float, Generator], Tensor]
Sum: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def weighted_sum(tensors: Tensor, weights: Tensor) -> Tensor:
    """Σ w t; tensors [n, …], weights [n]."""
    total: Tensor = torch.tensordot(weights, tensors, 1)
    return total


def elected_mean(tensors: Tensor, weights: Tensor) -> Tensor:
    """The mean of w t, at each place over those t alone that have the sign of Σ t there; 0 where none has."""
    elected = torch.where(tensors.sum(0) >= 0, 1, -1)
    agrees = tensors.sign() == elected
    return weighted_sum(tensors * agrees, weights) / agrees.sum(0).clamp(min=1)


def largest(tensor: Tensor, density: float, generator: Generator) -> Tensor:
    """The tensor with zeros but for this share of its elements, those of the largest magnitude."""
    flat = tensor.flatten()
    kept = flat.abs().topk(int(density * len(flat))).indices
    return torch.zeros_like(flat).index_copy(0, kept, flat[kept]).view_as(tensor)


def random(tensor: Tensor, density: float, generator: Generator) -> Tensor:
    """The tensor with elements kept by chance, and divided by that chance: the tensor itself in expectation."""
    mask = torch.bernoulli(torch.full_like(tensor, density), generator=generator)
    return tensor * mask / density


RULES: MappingProxyType[str, tuple[Thin | None, Sum]] = MappingProxyType(
    {
        "linear": (None, weighted_sum),
        "magnitude_prune": (largest, weighted_sum),
        "dare_linear": (random, weighted_sum),
        "ties": (largest, elected_mean),
        "dare_ties": (random, elected_mean),
    }
)
"""By PEFT's names: how each tensor is thinned out, and how they are summed."""


def apply_rule(
    name: str, tensors: Sequence[Tensor], weights: Sequence[float], density: float | None, generator: Generator
) -> Tensor:
    """One of `RULES` on tensors of one shape, in their dtype; a density of 1 keeps all."""
    thin, total = RULES[name]
    if thin is not None and density is not None and density < 1:
        tensors = [thin(tensor, density, generator) for tensor in tensors]
    stacked = torch.stack(list(tensors))
    return total(stacked, torch.tensor(weights, dtype=stacked.dtype))
