"""Several adapters as one that computes the sum of their updates."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tsugiki.adapters.format import read_adapter, read_adapter_config
from tsugiki.errors import TsugikiError
from tsugiki.lora.adapter import LoraAdapter
from tsugiki.lora.pair import LowRank


def load_weighted_sum(
    model: nn.Module,
    folders: Sequence[Path],
    weights: Sequence[float] | None = None,
    *,
    allow_base_mismatch: bool = False,
    settings: Callable[[Path], Any] = read_adapter_config,
) -> Any:
    """One adapter in place of these: Σ weight · ΔW, exactly, by pairs side by side.

    Args:
        model: their base, which stays as it is.
        folders: where they are stored.
        weights: a factor for each; 1 where nothing is said.
        allow_base_mismatch: as in `load_adapter`.
        settings: `read_adapter_config`, or `read_peft_config` for what is not to be trained.

    Raises:
        TsugikiError: one does not fit, or it is to be summed or scaled and is not ΔW of LoRA alone.
    """
    read = [read_adapter(model, one, settings(one), allow_base_mismatch=allow_base_mismatch) for one in folders]
    if len(read) == 1 and weights is None:
        return read[0]
    factors = [1.0] * len(read) if weights is None else weights
    if len(factors) != len(read) or not all(map(math.isfinite, factors)):
        shown = ", ".join(f"{factor:g}" for factor in factors)
        raise TsugikiError(f"weights are {shown}; give a number for each of {len(read)} adapters")
    for folder, adapter in zip(folders, read, strict=True):
        if not isinstance(adapter, LoraAdapter) or adapter.modules or adapter.biases or adapter.config.use_dora:
            raise TsugikiError(
                f"{folder} is more than low-rank updates of weights (DoRA, trained biases or modules, or another "
                "method), and has neither a sum with others nor a weight; merge it alone"
            )
    return _side_by_side(read, factors)


@torch.no_grad()
def _side_by_side(adapters: Sequence[LoraAdapter], weights: Sequence[float]) -> LoraAdapter:
    """A on A, weighted B beside B: of rank r1 + r2 + …"""
    parts: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for path, pair in adapter.pairs.items():
            A, B = pair.factors()
            parts.setdefault(path, []).append((A, B * (pair.scaling * weight)))
    pairs = {
        path: LowRank(torch.cat([A for A, _ in found]), torch.cat([B for _, B in found], 1), 1.0, 0.0)
        for path, found in parts.items()
    }
    return LoraAdapter(adapters[0].config, pairs, {}, {})
