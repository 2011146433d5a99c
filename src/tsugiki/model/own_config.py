"""A config of the model's own, whose changes do not reach other models that were built from the same config."""

import copy
from typing import Any, TypeAlias

from torch import nn

Replaced: TypeAlias = list[tuple[Any, str, Any]]
"""Module, attribute, and the config that a copy has replaced."""


def copy_configs(model: nn.Module, replaced: Replaced) -> None:
    """Replace the configs that the modules of a model hold by copies, which are shared as the configs were.

    Args:
        model: the model.
        replaced: gets the configs, for `restore_configs`, before they are replaced.
    """
    copies: dict[int, Any] = {}
    for module in model.modules():
        copy.deepcopy(vars(module).get("config"), copies)
    found = [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if id(value) in copies
    ]
    replaced += found
    for module, name, value in found:
        vars(module)[name] = copies[id(value)]


def restore_configs(replaced: Replaced) -> None:
    """Put the configs back, unless a copy has been changed, as by a trainer that sets a token; the copies then stay."""
    if all(getattr(module, name) == value for module, name, value in replaced):
        for module, name, value in replaced:
            setattr(module, name, value)
