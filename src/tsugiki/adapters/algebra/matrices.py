"""The update of a layer as matrices.

    ΔW = s · B A        B [groups, out / groups, r / groups], A [groups, r / groups, in]

Only convolutions can have more than one group; each group then has a separate pair of factors. The kernel of a
convolution is part of the columns; an embedding is [width, entries]. ΔW itself is never computed here: it would have
in · out elements, and the factors have (in + out) · r.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from tsugiki.adapters.lora_weights import LayerFactors


def matrices(layer: LayerFactors) -> tuple[Tensor, Tensor]:
    """Return B [groups, out / groups, r / groups] and A [groups, r / groups, in] in float64."""
    A, B = layer.A.double().flatten(1), layer.B.double().flatten(1)
    groups = len(A) // B.shape[1]
    return B.view(groups, -1, B.shape[1]), A.view(groups, -1, A.shape[1])


def with_matrices(layer: LayerFactors, B: Tensor, A: Tensor, scaling: float) -> LayerFactors:
    """Return the layer with other matrices, in float32, and another scaling."""
    groups, r, _ = A.shape
    return dataclasses.replace(
        layer,
        A=A.float().reshape(groups * r, *layer.A.shape[1:]),
        B=B.float().reshape(len(layer.B), r, *layer.B.shape[2:]),
        scaling=scaling,
    )


def concatenate(pairs: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return B and A with B A = Σ weight · Bᵢ Aᵢ; their rank is the sum of the ranks.

    Args:
        pairs: B [..., out, rᵢ] and A [..., rᵢ, in] of each term.
        weights: the factor on each term.
    """
    B = torch.cat([weight * B for weight, (B, _) in zip(weights, pairs, strict=True)], -1)
    return B, torch.cat([A for _, A in pairs], -2)


def svd(layer: LayerFactors) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the singular value decomposition U σ Vᵀ of B A in float64, from its factors.

    With the QR decompositions B = Q_B R_B and Aᵀ = Q_A R_A, only R_B R_Aᵀ [r, r] has to be decomposed.

    Returns:
        U [groups, out, k], σ [groups, k] in descending order, and Vᵀ [groups, k, in].
    """
    B, A = matrices(layer)
    Q_B, R_B = torch.linalg.qr(B)
    Q_A, R_A = torch.linalg.qr(A.mT)
    U, S, Vh = torch.linalg.svd(R_B @ R_A.mT, full_matrices=False)
    return Q_B @ U, S, Vh @ Q_A.mT


def best_factors(U: Tensor, S: Tensor, Vh: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Return B = U σ^½ and A = σ^½ Vᵀ of the best approximation of U σ Vᵀ that has rank r."""
    root = S[..., :r].sqrt()
    return U[..., :r] * root[..., None, :], root[..., None] * Vh[..., :r, :]
