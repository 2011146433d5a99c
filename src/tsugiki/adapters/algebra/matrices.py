"""The update of a layer as matrices, and what can be known of it without ever forming it.

    ΔW = s · B A        B [groups, out, r], A [groups, r, in]

There is one group but in a convolution that has several, each of which has a pair of its own. A kernel counts as
columns, and an embedding is [width, entries].
"""

import dataclasses

import torch
from torch import Tensor

from tsugiki.adapters.lora_weights import LayerFactors


def matrices(layer: LayerFactors) -> tuple[Tensor, Tensor]:
    """B [groups, out / groups, r / groups] and A [groups, r / groups, in], in float64."""
    A, B = layer.A.double().flatten(1), layer.B.double().flatten(1)
    groups = len(A) // B.shape[1]
    return B.view(groups, -1, B.shape[1]), A.view(groups, -1, A.shape[1])


def with_matrices(layer: LayerFactors, B: Tensor, A: Tensor, scaling: float) -> LayerFactors:
    """The layer with these matrices, in float32, and this scaling."""
    groups, r, _ = A.shape
    return dataclasses.replace(
        layer,
        A=A.float().reshape(groups * r, *layer.A.shape[1:]),
        B=B.float().reshape(len(layer.B), r, *layer.B.shape[2:]),
        scaling=scaling,
    )


def decomposed(layer: LayerFactors) -> tuple[Tensor, Tensor, Tensor]:
    """U [groups, out, k], σ [groups, k] falling, Vᵀ [groups, k, in] with U σ Vᵀ = B A, in float64.

    From QR of B and of Aᵀ, and the decomposition of the product of their triangles, which is [r, r].
    """
    B, A = matrices(layer)
    left, upper_B = torch.linalg.qr(B)
    right, upper_A = torch.linalg.qr(A.mT)
    U, S, Vh = torch.linalg.svd(upper_B @ upper_A.mT, full_matrices=False)
    return left @ U, S, Vh @ right.mT


def balanced(U: Tensor, S: Tensor, Vh: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """B and A of the best approximation of U σ Vᵀ that has rank r, the singular values shared evenly between them."""
    root = S[..., :r].sqrt()
    return U[..., :r] * root[..., None, :], root[..., None] * Vh[..., :r, :]
