"""Singular values and norms of a layer's update ΔW = s · B A, computed from its factors.

With the QR decompositions B = Q_B R_B and Aᵀ = Q_A R_A, ΔW = Q_B (s R_B R_Aᵀ) Q_Aᵀ. The columns of both Q are
orthonormal, so ΔW has the singular values of the core s R_B R_Aᵀ [r, r]. This takes (in + out) r² operations instead of
in · out · r. The squares of the singular values add up to ‖ΔW‖_F². Everything is computed in float64, which costs
little at this size.

For DoRA, whose ΔW depends on the base's weight, only the low-rank part is measured.
"""

import torch
from torch import Tensor

from tsugiki.adapters.algebra.matrices import concatenate, matrices
from tsugiki.adapters.lora_weights import LayerFactors


def singular_values(layer: LayerFactors) -> Tensor:
    """Compute the singular values of ΔW in descending order: [min(r, in, out)], float64.

    The entries of an embedding count as its inputs; a convolution is the matrix [out, in · height · width].
    """
    values: Tensor = torch.linalg.svdvals(_core(*_factors(layer)))
    return values


def update_norm(layer: LayerFactors) -> float:
    """Compute the Frobenius norm ‖ΔW‖_F."""
    return float(torch.linalg.norm(_core(*_factors(layer))))


def effective_rank(values: Tensor) -> float:
    """Compute the effective rank of an update, the number of directions that it uses, from its singular values.

    This is the exponential of the entropy of the values divided by their sum (Roy & Vetterli 2007, "The effective rank:
    a measure of effective dimensionality", EUSIPCO). It is n if n values are equal and the rest are zero, and 0 if all
    are zero.
    """
    total = values.sum()
    if not total > 0:
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())


def inner_product(one: LayerFactors, other: LayerFactors) -> float:
    """Compute ⟨ΔW, ΔW'⟩ = tr(ΔWᵀ ΔW') = Σ (Bᵀ B') ∘ (A A'ᵀ) of two updates of the same shape."""
    B, A = _factors(one)
    B_other, A_other = _factors(other)
    return float(((B.T @ B_other) * (A @ A_other.T)).sum())


def difference_norm(one: LayerFactors, other: LayerFactors) -> float:
    """Compute ‖ΔW - ΔW'‖_F of two updates of the same shape, precisely also if they are almost equal."""
    return float(torch.linalg.norm(_core(*concatenate([_factors(one), _factors(other)], [1, -1]))))


def update_shape(layer: LayerFactors) -> tuple[int, ...]:
    """Return the shape of ΔW: [out, in]; embedding: [entries, width]; convolution: [out, in, height, width]."""
    if layer.embedding:
        return layer.A.shape[1], layer.B.shape[0]
    return layer.B.shape[0], *layer.A.shape[1:]


def _factors(layer: LayerFactors) -> tuple[Tensor, Tensor]:
    """Return s B [out, r] and A [r, in] in float64. Their product is ΔW, also for a convolution with groups."""
    B, A = matrices(layer)
    # The rows of B in one group use the rows of A in the same group only.
    return torch.block_diag(*B) * layer.scaling, A.flatten(0, 1)  # type: ignore[no-untyped-call]


def _core(B: Tensor, A: Tensor) -> Tensor:
    """Return R_B R_Aᵀ, which has the singular values of B A."""
    core: Tensor = torch.linalg.qr(B, mode="r").R @ torch.linalg.qr(A.T, mode="r").R.T
    return core
