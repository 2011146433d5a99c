"""The effect of an adapter as updates of named weights, by which it is merged (see `lora.merge`)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

from torch import Tensor, nn

WeightUpdate: TypeAlias = Callable[[Tensor], Tensor]
"""Takes a weight of the base in any floating-point dtype, and returns the merged weight, in float32 or wider."""


def replace_with(value: Tensor) -> WeightUpdate:
    """Return a WeightUpdate that replaces the weight by `value`."""
    return partial(_second, value)


def is_replacement(update: WeightUpdate) -> bool:
    """Return whether this update was returned by `replace_with`."""
    return isinstance(update, partial) and update.func is _second


def module_updates(modules: Mapping[str, nn.Module]) -> dict[str, WeightUpdate]:
    """Return the updates that replace the parameters and buffers of whole modules, by name.

    Args:
        modules: name in the model before any graft -> the module that replaces it.
    """
    updates: dict[str, WeightUpdate] = {}
    of_tensor: dict[int, WeightUpdate] = {}  # shared tensors share an update
    for path, module in modules.items():
        for name, tensor in module.state_dict(keep_vars=True).items():
            updates[f"{path}.{name}"] = of_tensor.setdefault(id(tensor), replace_with(tensor))
    return updates


def _second(value: Tensor, _: Tensor) -> Tensor:
    return value
