"""Merging into a base that is held in few bits: each weight is made whole, added to, and rounded again.

    W = scale · codes   →   W + ΔW   →   scale' · codes' ≈ W + ΔW        lost: ‖scale' · codes' - W - ΔW‖ / ‖ΔW‖

A step between two codes can be larger than what an adapter changes: then the update is lost, or more than there is of
it, since a row that gets another scale is rounded anew as a whole. So `merge` refuses such a base, and this one says
what was lost.
A layer in few bits takes part by offering its weight as `whole()`, and itself with another weight as `rounded(weight)`.
"""

import dataclasses
from functools import partial

import torch
from torch import Tensor, nn

from tsugiki.errors import TsugikiError
from tsugiki.lora.adapter import LoraAdapter
from tsugiki.lora.graft import active_adapter, require_state
from tsugiki.lora.layer import Grafted, LowRank, grafted_layers, updated


@torch.no_grad()
def merge_quantized(model: nn.Module) -> dict[str, float]:
    """Fold the active LoRA adapter into its base, rounding where a layer is in few bits; `unmerge` undoes it.

    Returns:
        For each layer that was rounded the share of its update that is lost: 0 is none, 1 as much as there was.

    Raises:
        TsugikiError: no LoRA adapter is active, one is merged already, or a merged weight is not finite.
    """
    state, adapter = require_state(model), active_adapter(model)
    if state.merged is not None:
        raise TsugikiError(f"adapter {state.active!r} is merged into the base already; unmerge(model) comes first")
    if not isinstance(adapter, LoraAdapter):
        raise TsugikiError(f"a {type(adapter).__name__} cannot be merged by rounding; LoRA adapters can")
    layers = {
        path: layer
        for path, layer in grafted_layers(model).items()
        if path in adapter.pairs and hasattr(layer.base_layer, "rounded")
    }
    rounded, lost = {}, {}
    for path, layer in layers.items():
        rounded[path], lost[path] = _rounded(path, layer.base_layer, adapter.pairs[path])
    others = {path: pair for path, pair in adapter.pairs.items() if path not in layers}
    state.merged = dataclasses.replace(adapter, pairs=others).merge(model)
    for path, layer in layers.items():
        state.merged += [partial(_stand, layer, layer.base_layer, adapter.pairs[path])]
        _stand(layer, rounded[path], None)
    return lost


def _rounded(path: str, layer: nn.Module, pair: LowRank) -> tuple[nn.Module, float]:
    """The layer with the pair in it, and what was lost."""
    before: Tensor = layer.whole()  # type: ignore[operator]
    exact = updated(layer, pair, before)
    if not torch.isfinite(exact).all():
        raise TsugikiError(f"merging gives values that are not finite in {path}")
    after: nn.Module = layer.rounded(exact)  # type: ignore[operator]
    error, size = (after.whole() - exact).norm(), (exact - before).norm()  # type: ignore[operator]
    return after, float(error / size) if size else 0.0


def _stand(layer: Grafted, base_layer: nn.Module, pair: LowRank | None) -> None:
    """Let this be the frozen layer, and its pair."""
    layer.base_layer = base_layer
    layer.lora = pair
