"""Attaching a small module to a layer: it becomes the layer's child called `CHILD`, and a hook calls it.

The layer itself is not replaced. A function that undoes this is appended to a list (see `model.undo`).
"""

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

from torch import nn

from tsugiki.model.undo import CHILD, Undo

Hook = Callable[..., Any]
"""A forward hook, (layer, args, kwargs, output) -> output, or a pre-hook, (layer, args, kwargs) -> (args, kwargs)."""


def attach(
    layer: nn.Module, module: nn.Module, undo: list[Undo], *, before: Hook | None = None, after: Hook | None = None
) -> None:
    """Make `module` a child of `layer`, on its device and in its mode, with hooks that compute with `attached(layer)`.

    Args:
        layer: a layer of the base without such a child.
        module: what is attached.
        undo: gets a function that removes the child and the hooks.
        before: a pre-hook of the layer. Like `after` it must not be a closure, so that the model can be copied.
        after: a forward hook of the layer.
    """
    undo.append(partial(_detach, layer, before, after))
    tensor = next(chain(layer.parameters(), layer.buffers()), None)
    layer.register_module(CHILD, module.to(None if tensor is None else tensor.device).train(layer.training))
    if before is not None:
        layer.register_forward_pre_hook(before, with_kwargs=True)
    if after is not None:
        layer.register_forward_hook(after, with_kwargs=True)


def attached(layer: nn.Module) -> Any:
    """Return the module that is attached to the layer; None if there is none."""
    return layer._modules.get(CHILD)


def remove_hook(layer: nn.Module, hook: Hook) -> None:
    """Remove the latest hook with this function.

    Hooks are found by their function, not by a handle: after `copy.deepcopy`, a handle belongs to the original.
    """
    for hooks in (layer._forward_pre_hooks, layer._forward_hooks):
        for key in [key for key, found in hooks.items() if found is hook][-1:]:
            del hooks[key]
            layer._forward_pre_hooks_with_kwargs.pop(key, None)
            layer._forward_hooks_with_kwargs.pop(key, None)


def _detach(layer: nn.Module, before: Hook | None, after: Hook | None) -> None:
    layer._modules.pop(CHILD, None)
    for hook in (before, after):
        if hook is not None:
            remove_hook(layer, hook)
