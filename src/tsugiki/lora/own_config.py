"""A config of the model's own, whose changes do not reach other models that were built from the same config."""

import copy
from typing import Any

from torch import nn


def copy_configs(model: nn.Module) -> None:
    """Replace the configs that the modules of a model hold by copies, which are shared as the configs were."""
    copies: dict[int, Any] = {}
    for module in model.modules():
        copy.deepcopy(vars(module).get("config"), copies)
    for module in model.modules():
        for name, value in vars(module).items():
            if id(value) in copies:
                vars(module)[name] = copies[id(value)]
