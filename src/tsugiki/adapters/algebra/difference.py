"""Compare two adapters as matrices, layer by layer."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from tsugiki.adapters.algebra.matrices import difference_norm, inner_product, update_norm, update_shape
from tsugiki.adapters.lora_weights import LayerFactors

Matrix = TypeVar("Matrix")


@dataclass(frozen=True)
class Difference:
    """The difference of two matrices M and M' of the same name; M or M' is zero if an adapter does not have it."""

    name: str
    norms: tuple[float, float]
    """‖M‖_F and ‖M'‖_F."""
    inner: float
    """⟨M, M'⟩."""
    apart: float
    """‖M - M'‖_F."""
    only_in: int | None = None
    """0 if only the first adapter has the matrix, 1 if only the second has it, None if both do."""
    shapes: str = ""
    """Both shapes if they differ; `inner` and `apart` are NaN then. Empty if they are equal."""

    @property
    def cosine(self) -> float:
        """⟨M, M'⟩ / ‖M‖ ‖M'‖; NaN if a matrix is zero."""
        lengths = math.prod(self.norms)
        return self.inner / lengths if lengths else math.nan

    @property
    def relative(self) -> float:
        """‖M - M'‖ / ‖M‖; NaN if M is zero."""
        return self.apart / self.norms[0] if self.norms[0] else math.nan


def compare_layers(first: Mapping[str, LayerFactors], second: Mapping[str, LayerFactors]) -> list[Difference]:
    """Compare the updates ΔW of two LoRA adapters, from their factors; the ranks may differ."""
    return _compare(first, second, update_norm, update_shape, inner_product, difference_norm)


def compare_tensors(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[Difference]:
    """Compare tensors of the same names."""
    return _compare(
        first,
        second,
        _norm,
        lambda tensor: tuple(tensor.shape),
        lambda one, other: float((one.double() * other.double()).sum()),
        lambda one, other: _norm(one.double() - other.double()),
    )


def overall(differences: Sequence[Difference]) -> Difference:
    """Combine differences as if all matrices were one long vector; matrices of different shapes are left out."""
    comparable = [difference for difference in differences if not difference.shapes]
    norms = math.hypot(*(d.norms[0] for d in comparable)), math.hypot(*(d.norms[1] for d in comparable))
    apart = math.hypot(*(d.apart for d in comparable))
    return Difference("overall", norms, math.fsum(d.inner for d in comparable), apart)


def same_tensors(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Return whether both mappings have the same names and bit-identical tensors."""
    return first.keys() == second.keys() and all(
        tensor.dtype == second[name].dtype and torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


def _compare(
    first: Mapping[str, Matrix],
    second: Mapping[str, Matrix],
    norm: Callable[[Matrix], float],
    shape: Callable[[Matrix], tuple[int, ...]],
    inner: Callable[[Matrix, Matrix], float],
    apart: Callable[[Matrix, Matrix], float],
) -> list[Difference]:
    """Compare the matrices of each name with these functions."""
    found = []
    for name in {**first, **second}:
        one, other = first.get(name), second.get(name)
        norms = (norm(one) if one is not None else 0.0, norm(other) if other is not None else 0.0)
        if one is None or other is None:
            found.append(Difference(name, norms, 0.0, sum(norms), only_in=int(one is None)))
        elif shape(one) != shape(other):
            shapes = ", ".join("×".join(map(str, shape(matrix))) for matrix in (one, other))
            found.append(Difference(name, norms, math.nan, math.nan, shapes=shapes))
        else:
            found.append(Difference(name, norms, inner(one, other), apart(one, other)))
    return found


def _norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.double()))
