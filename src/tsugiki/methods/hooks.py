"""Attach a small trainable module to a layer of the base: it changes the input or the output (see `model.attach`)."""

from typing import Any

from torch import nn

from tsugiki.model.attach import attach, attached
from tsugiki.model.undo import Undo


def attach_output_module(layer: nn.Module, module: nn.Module, undo: list[Undo]) -> None:
    """Apply `module` to the output of `layer`: to the tensor, or to the first element of the tuple."""
    attach(layer, module, undo, after=_change_output)


def attach_input_module(layer: nn.Module, module: nn.Module, undo: list[Undo]) -> None:
    """Apply `module` to the first argument of `layer`."""
    attach(layer, module, undo, before=_change_input)


def _change_output(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    module = attached(layer)
    return (module(output[0]), *output[1:]) if isinstance(output, tuple) else module(output)


def _change_input(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return (attached(layer)(args[0]), *args[1:]), kwargs
