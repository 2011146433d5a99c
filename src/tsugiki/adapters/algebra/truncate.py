"""Reduce the rank of an adapter: each layer gets the best approximation of its ΔW, in the sum of squares.

    B A = U σ Vᵀ   →   B' = U[:, :r] σ[:r]^½,   A' = σ[:r]^½ Vᵀ[:r]        kept: Σ σ[:r]² of Σ σ²  (Eckart and Young)

ΔW is never computed (see `matrices.svd`), and the scaling stays the same. For DoRA only the low-rank part is
approximated, and the trained magnitudes stay the same. Other trained parameters stay the same, too.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tsugiki.adapters.algebra.matrices import best_factors, matrices, svd, with_matrices
from tsugiki.adapters.lora_weights import LayerFactors, LoraWeights
from tsugiki.errors import TsugikiError
from tsugiki.language import _


@dataclass(frozen=True)
class RankReduction:
    """The reduction of the rank of one layer's update."""

    before: int
    """The rank before."""
    after: int
    """The rank after."""
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

    Raises:
        TsugikiError: `r` is below 1.
    """
    if r < 1:
        raise TsugikiError(_("the rank is {r}; it must be at least 1").format(r=r))
    return _truncate_layers(lora, lambda squares, groups: max(1, r // groups))


def truncated_to_energy(lora: LoraWeights, share: float) -> tuple[LoraWeights, dict[str, RankReduction]]:
    """Reduce the rank of each layer to the smallest that keeps this share of its ‖ΔW‖².

    Raises:
        TsugikiError: the share is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise TsugikiError(
            _("the energy is {share}; it must be above 0 and at most 1, a share of each layer's update").format(
                share=share
            )
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

    Args:
        lora: the adapter.
        choose_rank: (squares of the singular values, summed over the groups; number of groups) -> rank for each group.
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
