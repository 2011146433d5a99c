"""Attach a small trainable module to a layer of the base: it changes the layer's input or output.

The layer itself is not replaced. The attached module becomes its child called `CHILD`, and a forward hook calls it.
A function that undoes this is appended to a list (see `lora.swap`).
"""

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any

from torch import nn

from tsugiki.lora.swap import CHILD, Undo


def attach_output_module(layer: nn.Module, module: nn.Module, undo: list[Undo]) -> None:
    """Apply `module` to the output of `layer`: to the tensor, or to the first element of the tuple."""
    _add_child(layer, module, undo)
    layer.register_forward_hook(_change_output)


def attach_input_module(layer: nn.Module, module: nn.Module, undo: list[Undo]) -> None:
    """Apply `module` to the first argument of `layer`."""
    _add_child(layer, module, undo)
    layer.register_forward_pre_hook(_change_input)


def detach_module(layer: nn.Module) -> None:
    """Remove the module that is attached to `layer`, and its hook."""
    layer._modules.pop(CHILD, None)
    # The hooks are found by their function, not by a handle: after `copy.deepcopy`, a handle belongs to the original.
    for hooks in (layer._forward_hooks, layer._forward_pre_hooks):
        for key in [key for key, hook in hooks.items() if hook in (_change_output, _change_input)]:
            del hooks[key]


def _add_child(layer: nn.Module, module: nn.Module, undo: list[Undo]) -> None:
    undo.append(partial(detach_module, layer))
    tensor = next(chain(layer.parameters(), layer.buffers()), None)
    layer.register_module(CHILD, module.to(None if tensor is None else tensor.device).train(layer.training))


def _attached(layer: nn.Module) -> Callable[..., Any]:
    module = layer._modules[CHILD]
    assert module is not None
    return module


def _change_output(layer: nn.Module, args: Any, output: Any) -> Any:
    module = _attached(layer)
    return (module(output[0]), *output[1:]) if isinstance(output, tuple) else module(output)


def _change_input(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (_attached(layer)(args[0]), *args[1:])
