"""Small modules put before or after modules of the base, which stay what they are: a child and a hook that calls it."""

from functools import partial
from itertools import chain
from typing import Any

from torch import nn

from tsugiki.lora.swap import CHILD, Undo


def attach_output_module(layer: nn.Module, part: nn.Module) -> Undo:
    """Let `part` change what `layer` returns: a tensor, or the first of a tuple."""
    layer.register_forward_hook(_after)
    return _put_under(layer, part)


def attach_input_module(layer: nn.Module, part: nn.Module) -> Undo:
    """Let `part` change the first of what `layer` is given."""
    layer.register_forward_pre_hook(_before)
    return _put_under(layer, part)


def detach_module(layer: nn.Module) -> None:
    """Leave `layer` alone, as it was."""
    del layer._modules[CHILD]
    # By what they are, not by a handle: the one that put the part there may not be the one that takes it out.
    for hooks in (layer._forward_hooks, layer._forward_pre_hooks):
        for key in [key for key, hook in hooks.items() if hook in (_after, _before)]:
            del hooks[key]


def _put_under(layer: nn.Module, part: nn.Module) -> Undo:
    near = next(chain(layer.parameters(), layer.buffers()), None)
    layer.register_module(CHILD, part.to(None if near is None else near.device).train(layer.training))
    return partial(detach_module, layer)


def _after(layer: nn.Module, args: Any, output: Any) -> Any:
    part = layer._modules[CHILD]
    assert part is not None
    return (part(output[0]), *output[1:]) if isinstance(output, tuple) else part(output)


def _before(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    part = layer._modules[CHILD]
    assert part is not None
    return (part(args[0]), *args[1:])
