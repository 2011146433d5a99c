"""Layers that PEFT renames when it loads an adapter, by transformers' conversion rules for old checkpoints."""

import re
import sys
from collections.abc import Iterable
from typing import Any

from torch import nn

from tsugiki.model.architectures import model_type


def named_like_experts(model: nn.Module, layers: Iterable[str]) -> list[str]:
    """Return the layers that PEFT would take for experts if `target_modules` named them.

    Such layers are stored as `target_parameters`, where PEFT leaves names as they are.

    Models whose experts are one parameter had a layer for each expert in older releases, such as `experts.0.gate_proj`.
    In `target_modules`, PEFT replaces these names, and that of the router, by the parameter's name, even for other
    layers with such names: the gate of an attention, a shared expert, the dense feed-forward network of the first
    block.
    """
    transformers = sys.modules.get("transformers.conversion_mapping")  # no model of transformers without it
    if transformers is None or model_type(model) == "qwen2_moe":  # PEFT makes an exception for this type
        return []
    rules = set(map(_patterns, transformers.get_checkpoint_conversion_mapping(model_type(model)) or []))
    for kind in ("mixtral", "qwen2_moe"):
        rules_of_kind = transformers.get_checkpoint_conversion_mapping(kind)
        merged = {_patterns(rule) for rule in rules_of_kind if hasattr(rule, "operations")}
        if merged <= rules:
            experts = {source.split(".")[-2] for sources, _ in merged for source in sources}
            return [name for name in layers if name.rpartition(".")[2] in experts | {"gate"}]
    return []


def renamed_when_loaded(model: nn.Module, layers: Iterable[str]) -> list[str]:
    """Return the layers whose factors PEFT drops when it loads them, because a rule for checkpoints renames them again.

    Such a rule is meant for the names of old checkpoints, but matches those of the model, too. PEFT accepts a renaming
    that only removes a prefix.
    """
    conversion = sys.modules.get("transformers.conversion_mapping")
    if conversion is None or not hasattr(model, "base_model_prefix"):
        return []
    rules = [rule for rule in conversion.get_model_conversion_mapping(model) if not hasattr(rule, "operations")]
    changed: dict[str, bool] = {}  # layers that differ in indices alone are renamed alike

    def is_changed(layer: str) -> bool:
        kind = re.sub(r"\d+", "0", layer)
        if kind not in changed:
            renamed = key = f"{layer}.lora_A.weight"
            for rule in rules:
                renamed = rule.rename_source_key(renamed)[0]
            changed[kind] = not key.endswith(renamed)
        return changed[kind]

    return [layer for layer in layers if is_changed(layer)]


def _patterns(rule: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the source and the target patterns of transformers' rule for names in checkpoints."""
    return tuple(rule.source_patterns), tuple(rule.target_patterns)
