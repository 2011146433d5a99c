"""Layers that the settings leave open, and the output head among them."""

import dataclasses
from typing import Any

from torch import nn

from tsugiki.lora.config import LoraConfig
from tsugiki.lora.pair import LowRank
from tsugiki.lora.targets import find_targets, shortest_target_modules
from tsugiki.model.linear import is_graftable
from tsugiki.model.ungrafted import base_modules, output_head


def leaves_layers_open(config: Any) -> bool:
    """Return whether the settings of a method leave the choice of the layers to the model type's defaults."""
    return (
        isinstance(config, LoraConfig)
        and config.target_modules is None
        and not (config.target_parameters or config.modules_to_save or config.exclude_modules)
        and config.trainable_token_indices is None
        and config.layers_to_transform is None
    )


def with_output_head(model: nn.Module, config: LoraConfig) -> LoraConfig | None:
    """Return settings that select the default layers of the model and its output head.

    Returns None if the model has no head that can be grafted.
    """
    head = output_head(model)
    names = [name for name, module in base_modules(model) if module is head]
    if head is None or not names or not is_graftable(head):
        return None
    both = [*find_targets(model, config), names[0]]
    return dataclasses.replace(config, target_modules=shortest_target_modules(model, config, both))


def head_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return B of the output head's LoRA factors; empty if it has none."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    pair = getattr(head, "lora", None)
    return [pair.B] if isinstance(pair, LowRank) else []
