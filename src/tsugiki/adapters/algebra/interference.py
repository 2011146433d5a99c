"""Rules that sum tensors of several adapters, and reduce the interference between them by dropping elements first.

    magnitude_prune   keeps the largest elements of each tensor
    dare              keeps random elements of each tensor, divided by the density   Yu et al. 2023, arXiv:2311.03099
    ties              keeps the largest elements of each tensor; then takes, for each element, the mean over the
                      tensors whose element has the sign of the sum                 Yadav et al. 2023, arXiv:2306.01708

The density is the share of elements that are kept. Results and the order of random numbers are those of PEFT's
`merge_utils`. So ties takes the sign of the unweighted sum, and divides the sum of the weighted tensors by their
number.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Generator, Tensor

Drop: TypeAlias = Callable[[Tensor, float, Generator], Tensor]
"""(tensor, density, generator) -> the tensor with dropped elements set to 0."""
Sum: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(tensors [n, …], weights [n]) -> their sum […]."""


def weighted_sum(tensors: Tensor, weights: Tensor) -> Tensor:
    """Compute Σ w t of tensors [n, …] with weights [n]."""
    total: Tensor = torch.tensordot(weights, tensors, 1)
    return total


def elected_mean(tensors: Tensor, weights: Tensor) -> Tensor:
    """Compute, for each element, the mean of w t over the tensors t that have the sign of Σ t there; 0 if none has."""
    elected = torch.where(tensors.sum(0) >= 0, 1, -1)
    agrees = tensors.sign() == elected
    return weighted_sum(tensors * agrees, weights) / agrees.sum(0).clamp(min=1)


def largest(tensor: Tensor, density: float, generator: Generator) -> Tensor:
    """Keep the share `density` of the elements, those with the largest magnitudes, and set the others to 0."""
    flat = tensor.flatten()
    kept = flat.abs().topk(int(density * len(flat))).indices
    return torch.zeros_like(flat).index_copy(0, kept, flat[kept]).view_as(tensor)


def random(tensor: Tensor, density: float, generator: Generator) -> Tensor:
    """Keep each element with probability `density`, divided by it, so that the expected value is the tensor itself."""
    mask = torch.bernoulli(torch.full_like(tensor, density), generator=generator)
    return tensor * mask / density


RULES: Mapping[str, tuple[Drop | None, Sum]] = {
    "linear": (None, weighted_sum),
    "magnitude_prune": (largest, weighted_sum),
    "dare_linear": (random, weighted_sum),
    "ties": (largest, elected_mean),
    "dare_ties": (random, elected_mean),
}
"""PEFT's name of a rule -> the function that drops elements of each tensor, and the function that sums the tensors."""


def apply_rule(
    name: str, tensors: Sequence[Tensor], weights: Sequence[float], density: float | None, generator: Generator
) -> Tensor:
    """Apply one of `RULES` to tensors of one shape, in their dtype; a density of 1 keeps all elements."""
    drop, sum_up = RULES[name]
    if drop is not None and density is not None and density < 1:
        tensors = [drop(tensor, density, generator) for tensor in tensors]
    stacked = torch.stack(list(tensors))
    return sum_up(stacked, torch.tensor(weights, dtype=stacked.dtype))
