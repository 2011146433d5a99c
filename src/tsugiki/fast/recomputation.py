"""Activation checkpointing: blocks whose activations are computed again in the backward pass, instead of being kept.

    kept         a block keeps what its backward pass needs: about 30 numbers for each token and channel
    recomputed   a block keeps its input, and its forward pass runs once more in the backward pass

The gradients are the same to the last bit, because the second forward pass draws the same dropout masks: the states of
the generators of `fast.masks` are restored, and torch restores its own. transformers' gradient checkpointing does not
know those generators.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tsugiki.errors import TsugikiError
from tsugiki.fast.masks import current_generators, masks_from
from tsugiki.model.inference import decoder_blocks
from tsugiki.model.undo import Undo, replace_forward, replaced_forward, undo_all

_UNDO = "_tsugiki_recomputed"
"""The attribute of a model with the functions that undo `recompute_blocks`."""


def recompute_blocks(model: nn.Module, count: int) -> None:
    """Let the first `count` blocks of a model be recomputed, in place; 0: none. Later blocks keep their activations.

    The first blocks are chosen because the backward pass begins with the last block, when the activations of all others
    are in memory. Only the `forward` of a block's instance is replaced.
    """
    blocks = decoder_blocks(model)
    if count and not blocks:
        raise TsugikiError(
            "{model} has no list of blocks, so its activations cannot be recomputed: set recompute to none",
            model=type(model).__name__,
        )
    undo_all(vars(model).pop(_UNDO, []))
    if count:
        undo: list[Undo] = []
        setattr(model, _UNDO, undo)
        for block in blocks[:count]:
            replace_forward(block, partial(_recomputed, vars(block).get("forward"), block), undo)


def recomputed_blocks(model: nn.Module) -> int:
    """Return how many blocks of the model are recomputed."""
    return sum(replaced_forward(block) is _recomputed for block in decoder_blocks(model))


def _recomputed(before: Any, block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call a block without keeping its activations; `before` is the former `forward` of its instance, if it had one."""
    forward = before or partial(type(block).forward, block)
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=_same_masks, **kwargs)


def _same_masks() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the first forward pass and of the second, in which masks have the same seeds."""
    return nullcontext(), masks_from(*(generator.clone_state() for generator in current_generators()))
