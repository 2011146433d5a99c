"""Read several adapters as one adapter that computes the weighted sum of their updates."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tsugiki.adapters.algebra.combine import weights_or_ones
from tsugiki.adapters.algebra.matrices import concatenate
from tsugiki.adapters.files import read_peft_config
from tsugiki.adapters.format import read_adapter
from tsugiki.errors import TsugikiError
from tsugiki.lora.adapter import LoraAdapter
from tsugiki.lora.pair import LowRank


def load_weighted_sum(
    model: nn.Module,
    folders: Sequence[Path],
    weights: Sequence[float] | None = None,
    *,
    allow_base_mismatch: bool = False,
) -> Any:
    """Read adapters as one adapter for `model` that computes Σ weight · ΔW exactly; the ranks add up.

    The result is for inference and merging, not for training: a PiSSA adapter is read as a LoRA of twice the rank.
    Without weights, each is 1. A single adapter without a weight may be of any method; others must have nothing but
    LoRA's updates of layers.
    """
    adapters = [
        read_adapter(model, folder, read_peft_config(folder), allow_base_mismatch=allow_base_mismatch)
        for folder in folders
    ]
    if len(adapters) == 1 and weights is None:
        return adapters[0]
    weights = weights_or_ones(weights, len(adapters))
    for folder, adapter in zip(folders, adapters, strict=True):
        if not isinstance(adapter, LoraAdapter) or adapter.others or adapter.config.use_dora:
            raise TsugikiError(
                "{folder} has more than low-rank updates of layers (DoRA, experts, trained biases or modules, "
                "or another method), so it cannot be weighted or added to others; merge it alone and without "
                "{flag:weights}",
                folder=folder,
            )
    terms: dict[str, list[tuple[LowRank, float]]] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for path, pair in adapter.pairs.items():
            terms.setdefault(path, []).append((pair, pair.scaling * weight))
    return LoraAdapter(adapters[0].config, {path: _sum_pairs(found) for path, found in terms.items()})


@torch.no_grad()
def _sum_pairs(terms: Sequence[tuple[LowRank, float]]) -> LowRank:
    factors: list[tuple[Tensor, Tensor]] = [pair.factors() for pair, _ in terms]
    B, A = concatenate([(B.flatten(1), A.flatten(1)) for A, B in factors], [weight for _, weight in terms])
    first_A, first_B = factors[0]
    return LowRank(A.view(len(A), *first_A.shape[1:]), B.view(*B.shape, *first_B.shape[2:]), 1.0, 0.0)
