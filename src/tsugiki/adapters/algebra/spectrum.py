"""The update of a layer, ΔW = s · B A, by its singular values, and never formed.

With Q_B R_B = B and Q_A R_A = Aᵀ, ΔW = Q_B (s R_B R_Aᵀ) Q_Aᵀ: the columns of both Q are at right angles, so the
singular values are those of the core s R_B R_Aᵀ [r, r], at (in + out) r² operations instead of in · out · r. Their
squares add up to ‖ΔW‖_F². All is computed in float64, which costs little at this size.

DoRA's ΔW depends on the base's weight; here is its low-rank part.
"""

import torch
from torch import Tensor

from tsugiki.adapters.algebra.matrices import matrices
from tsugiki.adapters.lora_weights import LayerFactors


def singular_values(layer: LayerFactors) -> Tensor:
    """Those of ΔW, the largest first: [min(r, in, out)], float64.

    The rows of a table of embeddings count as its in-features; a convolution is the matrix [out, in · height · width].
    """
    values: Tensor = torch.linalg.svdvals(_core(*_whole(layer)))
    return values


def update_norm(layer: LayerFactors) -> float:
    """‖ΔW‖_F."""
    return float(torch.linalg.norm(_core(*_whole(layer))))


def effective_rank(values: Tensor) -> float:
    """How many directions an update uses: n where n singular values are equal and the rest zero, 0 of no update.

    It is the exponential of the entropy of the values over their sum, in nats (Roy & Vetterli 2007, "The effective
    rank: a measure of effective dimensionality", EUSIPCO).
    """
    total = values.sum()
    if not total > 0:
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())


def inner_product(one: LayerFactors, other: LayerFactors) -> float:
    """⟨ΔW, ΔW'⟩ = tr(ΔWᵀ ΔW') = Σ (Bᵀ B') ∘ (A A'ᵀ), from products of the size of the ranks.

    Both must be of the same shape.
    """
    A, B = _whole(one)
    A_other, B_other = _whole(other)
    return float(((B.T @ B_other) * (A @ A_other.T)).sum())


def difference_norm(one: LayerFactors, other: LayerFactors) -> float:
    """‖ΔW - ΔW'‖_F. It is that of the factors [B, -B'] and [A; A']: near 0 it is exact, unlike a difference of norms.

    Both must be of the same shape.
    """
    A, B = _whole(one)
    A_other, B_other = _whole(other)
    return float(torch.linalg.norm(_core(torch.cat([A, A_other]), torch.cat([B, -B_other], 1))))


def update_shape(layer: LayerFactors) -> tuple[int, ...]:
    """The shape of ΔW: [out, in], of an embedding [entries, width], of a convolution [out, in, height, width]."""
    if layer.embedding:
        return layer.A.shape[1], layer.B.shape[0]
    return layer.B.shape[0], *layer.A.shape[1:]


def _whole(layer: LayerFactors) -> tuple[Tensor, Tensor]:
    """A [r, in] and s B [out, r] in float64 such that their product is ΔW, of a convolution in groups too."""
    B, A = matrices(layer)
    # The outputs of each group see the channels of A that are its own.
    return A.flatten(0, 1), torch.block_diag(*B) * layer.scaling  # type: ignore[no-untyped-call]


def _core(A: Tensor, B: Tensor) -> Tensor:
    """R_B R_Aᵀ, with the singular values of B A."""
    core: Tensor = torch.linalg.qr(B, mode="r").R @ torch.linalg.qr(A.T, mode="r").R.T
    return core
