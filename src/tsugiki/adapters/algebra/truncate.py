"""An adapter of a lower rank: of each layer the best approximation of ΔW, in the sum of squares, that the rank allows.

    B A = U σ Vᵀ   →   B' = U[:, :r] σ[:r]^½,   A' = σ[:r]^½ Vᵀ[:r]        kept: Σ σ[:r]² of Σ σ²  (Eckart and Young)

ΔW is never formed (see `matrices.decomposed`), and its scaling stays. Of a DoRA adapter this is done to the pairs; the
lengths of rows stay those that were trained. What an adapter trains besides its pairs stays as it is.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tsugiki.adapters.algebra.matrices import balanced, decomposed, matrices, with_matrices
from tsugiki.adapters.lora_weights import LayerFactors, LoraWeights
from tsugiki.errors import TsugikiError


@dataclass(frozen=True)
class RankReduction:
    """What became of one layer's update."""

    before: int
    """Its rank."""
    after: int
    kept: float
    """Of ‖ΔW‖², in the same unit."""
    whole: float

    @property
    def energy(self) -> float:
        """The share of ‖ΔW‖² that is kept; all of nothing is all."""
        return self.kept / self.whole if self.whole else 1.0


def truncated(lora: LoraWeights, r: int) -> tuple[LoraWeights, dict[str, RankReduction]]:
    """Of rank `r` at most; layers whose rank is no higher stay as they are.

    A convolution in groups gets r / groups for each, rounded down, and 1 at least.

    Raises:
        TsugikiError: `r` is below 1.
    """
    if r < 1:
        raise TsugikiError(f"rank is {r}; a rank is a whole number of at least 1")
    return _each_layer(lora, lambda squares, groups: max(1, r // groups))


def truncated_to_energy(lora: LoraWeights, share: float) -> tuple[LoraWeights, dict[str, RankReduction]]:
    """Of the smallest rank in each layer that keeps this share of its ‖ΔW‖².

    Raises:
        TsugikiError: the share is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise TsugikiError(f"energy is {share}; it is a share of each layer's update, above 0 and at most 1")

    def smallest(squares: Tensor, groups: int) -> int:
        sums = squares.cumsum(0)
        # Rounding must not ask for directions that hold nothing.
        enough = sums >= (share - 1e-12) * sums[-1]
        return int(enough.nonzero()[0]) + 1

    return _each_layer(lora, smallest)


def overall(kept: Mapping[str, RankReduction]) -> float:
    """The share of Σ ‖ΔW‖² over these layers that is kept."""
    whole = sum(layer.whole for layer in kept.values())
    return sum(layer.kept for layer in kept.values()) / whole if whole else 1.0


def _each_layer(lora: LoraWeights, rank: Callable[[Tensor, int], int]) -> tuple[LoraWeights, dict[str, RankReduction]]:
    """`rank` says how many of the singular values of each group to keep, from their squares summed over the groups."""
    layers, kept = {}, {}
    for path, layer in lora.layers.items():
        layers[path], kept[path] = _truncated(layer, rank)
    return dataclasses.replace(lora, layers=layers), kept


@torch.no_grad()
def _truncated(layer: LayerFactors, rank: Callable[[Tensor, int], int]) -> tuple[LayerFactors, RankReduction]:
    U, S, Vh = decomposed(layer)
    groups = len(S)
    squares = S.square().sum(0)
    r = rank(squares, groups)
    whole = layer.scaling**2 * float(squares.sum())
    if r * groups >= layer.r:
        return layer, RankReduction(layer.r, layer.r, whole, whole)
    B, A = balanced(U, S, Vh, r)
    if not (layer.A.any() and layer.B.any()):  # one is zero, and a training can begin from the other
        B, A = matrices(layer)
        B, A = B[..., :r], A[:, :r]
    shorter = with_matrices(layer, B, A, layer.scaling)
    return shorter, RankReduction(layer.r, shorter.r, layer.scaling**2 * float(squares[:r].sum()), whole)
