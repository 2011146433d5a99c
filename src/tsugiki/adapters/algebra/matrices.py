"""The update of a layer as matrices: from its factors and back, norm, singular values, and best approximation.

    ΔW = s · B A        B [groups, out / groups, r / groups], A [groups, r / groups, in]

Only convolutions can have more than one group; each group then has a separate pair of factors. The kernel of a
convolution is part of the columns; an embedding is [width, entries]. ΔW itself is never computed here: it would have
in · out elements, and the factors have (in + out) · r.

With the QR decompositions B = Q_B R_B and Aᵀ = Q_A R_A, ΔW = Q_B (s R_B R_Aᵀ) Q_Aᵀ. The columns of both Q are
orthonormal, so ΔW has the singular values of the core s R_B R_Aᵀ [r, r], and the squares of these add up to ‖ΔW‖_F².
This takes (in + out) r² operations instead of in · out · r. Everything is computed in float64, which costs little at
this size.

A layer of a smaller rank gets the best approximation of its ΔW, in the sum of squares:

    B A = U σ Vᵀ   →   B' = U[:, :r] σ[:r]^½,   A' = σ[:r]^½ Vᵀ[:r]        kept: Σ σ[:r]² of Σ σ²  (Eckart and Young)

For DoRA, whose ΔW depends on the base's weight, only the low-rank part is measured and approximated. The trained
magnitudes and other trained parameters stay the same.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tsugiki.adapters.lora_weights import LayerFactors, LoraWeights
from tsugiki.errors import TsugikiError


def matrices(layer: LayerFactors) -> tuple[Tensor, Tensor]:
    """Return B [groups, out / groups, r / groups] and A [groups, r / groups, in] in float64.

    Stored are B [out, r / groups, …] and A [r, in, …] (see `LayerFactors`), with the rows of one group after the other.
    """
    A, B = layer.A.double().flatten(1), layer.B.double().flatten(1)
    r_of_group = B.shape[1]
    groups = len(A) // r_of_group
    return B.view(groups, -1, r_of_group), A.view(groups, r_of_group, -1)


def with_matrices(layer: LayerFactors, B: Tensor, A: Tensor, scaling: float) -> LayerFactors:
    """Return the layer with B and A as its factors, in float32, and another scaling: the inverse of `matrices`."""
    groups, r = A.shape[:2]
    return dataclasses.replace(
        layer,
        A=A.float().reshape(groups * r, *layer.A.shape[1:]),
        B=B.float().reshape(len(layer.B), r, *layer.B.shape[2:]),
        scaling=scaling,
    )


def concatenate(pairs: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return B and A with B A = Σ weight · Bᵢ Aᵢ, for pairs of B [..., out, rᵢ] and A [..., rᵢ, in]."""
    B = torch.cat([weight * B for weight, (B, _) in zip(weights, pairs, strict=True)], -1)
    return B, torch.cat([A for _, A in pairs], -2)


def svd(layer: LayerFactors) -> tuple[Tensor, Tensor, Tensor]:
    """Compute U [groups, out, k], σ [groups, k] in descending order, and Vᵀ [groups, k, in] of B A, in float64."""
    B, A = matrices(layer)
    Q_B, R_B = torch.linalg.qr(B)
    Q_A, R_A = torch.linalg.qr(A.mT)
    U, S, Vh = torch.linalg.svd(R_B @ R_A.mT, full_matrices=False)
    return Q_B @ U, S, Vh @ Q_A.mT


def best_factors(U: Tensor, S: Tensor, Vh: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Return B = U σ^½ and A = σ^½ Vᵀ of the best approximation of U σ Vᵀ that has rank r."""
    root = S[..., :r].sqrt()
    return U[..., :r] * root[..., None, :], root[..., None] * Vh[..., :r, :]


def singular_values(layer: LayerFactors) -> Tensor:
    """Compute the singular values of ΔW in descending order: [min(r, in, out)], float64.

    The entries of an embedding count as its inputs; a convolution is the matrix [out, in · height · width].
    """
    B, A = _factors(layer)
    # The rows of B in one group use the rows of A in the same group only, and all groups have the same inputs.
    core = _core(torch.block_diag(*B), A.flatten(0, 1))  # type: ignore[no-untyped-call]
    values: Tensor = torch.linalg.svdvals(core)
    return values


def update_norm(layer: LayerFactors) -> float:
    """Compute the Frobenius norm ‖ΔW‖_F."""
    return float(torch.linalg.vector_norm(_core(*_factors(layer))))


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


def update_shape(layer: LayerFactors) -> tuple[int, ...]:
    """Return the shape of ΔW: [out, in]; embedding: [entries, width]; convolution: [out, in, height, width]."""
    if layer.embedding:
        return layer.A.shape[1], layer.B.shape[0]
    return layer.B.shape[0], *layer.A.shape[1:]


@dataclass(frozen=True)
class RankReduction:
    """The reduction of the rank of one layer's update."""

    before: int
    after: int
    kept: float
    """‖ΔW‖² after."""
    total: float
    """‖ΔW‖² before."""

    @property
    def energy(self) -> float:
        """The share of ‖ΔW‖² that is kept; 1 if the update is zero."""
        return self.kept / self.total if self.total else 1.0


def truncated(lora: LoraWeights, r: int) -> tuple[LoraWeights, dict[str, RankReduction]]:
    """Reduce the rank of each layer to at most `r`.

    For a convolution in groups, each group gets the rank r / groups, rounded down, but at least 1.
    """
    if r < 1:
        raise TsugikiError("the rank is {r}; it must be at least 1", r=r)
    return _truncate_layers(lora, lambda squares, groups: max(1, r // groups))


def truncated_to_energy(lora: LoraWeights, share: float) -> tuple[LoraWeights, dict[str, RankReduction]]:
    """Reduce the rank of each layer to the smallest that keeps this share of its ‖ΔW‖²."""
    if not 0 < share <= 1:
        raise TsugikiError(
            "the energy is {share}; it must be above 0 and at most 1, a share of each layer's update", share=share
        )

    def smallest_rank(squares: Tensor, groups: int) -> int:
        sums = squares.cumsum(0)
        # Without the margin, rounding errors could require directions whose singular values are zero.
        sufficient = sums >= (share - 1e-12) * sums[-1]
        return int(sufficient.nonzero()[0]) + 1

    return _truncate_layers(lora, smallest_rank)


def kept_energy(reductions: Mapping[str, RankReduction]) -> float:
    """Return the share of Σ ‖ΔW‖² that is kept over all layers."""
    total = sum(layer.total for layer in reductions.values())
    return sum(layer.kept for layer in reductions.values()) / total if total else 1.0


def _truncate_layers(
    lora: LoraWeights, choose_rank: Callable[[Tensor, int], int]
) -> tuple[LoraWeights, dict[str, RankReduction]]:
    """Reduce the rank of each layer.

    `choose_rank` gets the squares of the singular values, summed over the groups, and the number of groups, and returns
    the rank for each group.
    """
    layers, reductions = {}, {}
    for path, layer in lora.layers.items():
        layers[path], reductions[path] = _truncate(layer, choose_rank)
    return dataclasses.replace(lora, layers=layers), reductions


@torch.no_grad()
def _truncate(layer: LayerFactors, choose_rank: Callable[[Tensor, int], int]) -> tuple[LayerFactors, RankReduction]:
    U, S, Vh = svd(layer)
    groups = len(S)
    squares = S.square().sum(0)
    r = choose_rank(squares, groups)
    total = layer.scaling**2 * float(squares.sum())
    if r * groups >= layer.r:
        return layer, RankReduction(layer.r, layer.r, total, total)
    B, A = best_factors(U, S, Vh, r)
    if not (layer.A.any() and layer.B.any()):  # ΔW is zero: keep the other factor, so that training can continue
        B, A = matrices(layer)
        B, A = B[..., :r], A[:, :r]
    shorter = with_matrices(layer, B, A, layer.scaling)
    return shorter, RankReduction(layer.r, shorter.r, layer.scaling**2 * float(squares[:r].sum()), total)


def _factors(layer: LayerFactors) -> tuple[Tensor, Tensor]:
    """Return s B and A of each group."""
    B, A = matrices(layer)
    return B * layer.scaling, A


def _core(B: Tensor, A: Tensor) -> Tensor:
    """Return R_B R_Aᵀ of each group, which has the singular values of B A."""
    core: Tensor = torch.linalg.qr(B, mode="r").R @ torch.linalg.qr(A.mT, mode="r").R.mT
    return core
