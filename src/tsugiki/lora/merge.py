"""Merging: the active adapter is added to the base's weights, so that it costs nothing at inference.

An adapter defines its effect as updates of named weights (`Adapter.weight_updates`). Here they are applied to a model
in memory; `adapters.merge_files` applies them to the files of a model.

    merge(model)    W  →  W + ΔW, rounded to the dtype of W

The old weights are kept for `unmerge`, which restores them bit-identically. The new weight belongs to its layer alone,
so a weight that was shared (such as GPT-2's by embedding and output head) is not shared any more, and the model's
config then says so.

A step between two quantised values can be larger than the adapter's update, which would be lost. So `merge` raises an
error for a quantised base.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from tsugiki.errors import TsugikiError
from tsugiki.lora.hold import active_adapter, attach_adapter, require_state
from tsugiki.model.undo import Undo, replace_parameter, undo_all
from tsugiki.model.ungrafted import unwrapped
from tsugiki.model.weights import WeightUpdate, is_quantized_weight, shared_in_part, untie, updated_weights


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """Add the active adapter to the base's weights, in place. A model that is merged already is left as it is.

    A shared weight that the adapter changes in one place only becomes two weights, with a warning;
    `config.tie_word_embeddings` is set to False, so that a saved model keeps both. `ungraft(merge(model))` is a plain
    model with the adapter in its weights.

    Raises:
        TsugikiError: no adapter is active, its method cannot be merged, a merged weight is not finite, or the base is
            quantised.
    """
    model = unwrapped(model)
    state = require_state(model)
    if state.merged is None:
        with _updates_of_active_adapter(model) as (updates, undo):
            quantized = [name for name, update in updates.items() if is_quantized_weight(model, name, update)]
            if quantized:
                raise TsugikiError(
                    "{path} is quantised, so merging would lose part of the update; load the base unquantised",
                    path=quantized[0],
                )
            _apply(model, updates, undo)
            state.merged = undo
    return model


def unmerge(model: nn.Module) -> nn.Module:
    """Undo `merge`: the base's weights are bit-identical to before, and the adapter is active.

    Raises:
        TsugikiError: nothing is merged.
    """
    model = unwrapped(model)
    state = require_state(model)
    if state.merged is None:
        raise TsugikiError("nothing is merged into this model")
    undo_all(state.merged)
    state.merged = None
    attach_adapter(model, state.active)
    return model


@contextmanager
def _updates_of_active_adapter(model: nn.Module) -> Iterator[tuple[dict[str, WeightUpdate], list[Undo]]]:
    """Detach the active adapter from the model, and yield its updates and a list for functions that undo them.

    If the block raises an error, these functions are called, and the adapter is attached again.
    """
    state, adapter = require_state(model), active_adapter(model)
    if any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):  # torch's DTensor
        raise TsugikiError(
            "the weights of this model are split over several processes, so nothing can be merged into them; "
            "save the adapter, and merge it in one process"
        )
    active, undo = state.active, list[Undo]()
    try:
        undo_all(state.attached)
        yield adapter.weight_updates(model), undo
    except BaseException:
        undo_all(undo)
        attach_adapter(model, active)
        raise


def _apply(model: nn.Module, updates: Mapping[str, WeightUpdate], undo: list[Undo]) -> None:
    """Replace weights that are not quantised by the updated ones."""
    untied = shared_in_part(model, updates)
    for name, weight in updated_weights(model, updates).items():
        replace_parameter(model, name, weight, undo)
    untie(model, untied, undo)
