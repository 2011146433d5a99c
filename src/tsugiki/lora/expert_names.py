"""Names of layers that PEFT takes for those of experts."""

import sys
from collections.abc import Iterable
from typing import Any

from torch import nn

from tsugiki.architectures import model_type


def named_like_experts(model: nn.Module, layers: Iterable[str]) -> list[str]:
    """Return the layers that PEFT would take for experts if `target_modules` named them.

    Such layers are stored as `target_parameters`, where PEFT leaves names as they are.

    Models whose experts are one parameter once had a layer for each expert, such as `experts.0.gate_proj`. In
    `target_modules`, PEFT replaces these names, and that of the router, by the parameter's, without regard to other
    layers that have them: the gate of an attention, a shared expert, the dense feed-forward network of the first block.
    """
    transformers = sys.modules.get("transformers.conversion_mapping")  # no model of transformers without it
    if transformers is None or model_type(model) == "qwen2_moe":  # of this type alone, PEFT does not
        return []
    rules = set(map(_patterns, transformers.get_checkpoint_conversion_mapping(model_type(model)) or []))
    for kind in ("mixtral", "qwen2_moe"):
        rules_of_kind = transformers.get_checkpoint_conversion_mapping(kind)
        merged = {_patterns(rule) for rule in rules_of_kind if hasattr(rule, "operations")}
        if merged <= rules:
            experts = {source.split(".")[-2] for sources, _ in merged for source in sources}
            return [name for name in layers if name.rpartition(".")[2] in experts | {"gate"}]
    return []


def _patterns(rule: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what a rule of transformers, for names in checkpoints, replaces by what."""
    return tuple(rule.source_patterns), tuple(rule.target_patterns)
