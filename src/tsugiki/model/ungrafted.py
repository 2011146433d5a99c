"""The modules of a model by their names before any graft, whether adapters are attached or not."""

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from tsugiki.model.names import Names, matches
from tsugiki.model.undo import CHILD, base_of

_HEADS = {
    "ForSequenceClassification": ("classifier", "score"),
    "ForTokenClassification": ("classifier", "score"),
    "ForQuestionAnswering": ("qa_outputs",),
}
"""End of the name of a model's class -> the ends of the names of its output layers."""


def base_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """List the modules of the ungrafted model by name, whether adapters are attached or not.

    A grafted layer is listed as its frozen layer. Modules that an adapter added are left out.
    """
    return [
        (name, base_of(module))
        for name, module in model.named_modules(remove_duplicate=False)
        if name and not re.search(rf"(^|\.)(base_layer|lora|{CHILD})(\.|$)", name)
    ]


def find_modules(model: nn.Module, wanted: Names) -> dict[str, nn.Module]:
    """Find the modules that `wanted` selects (see `matches`), by their names in the ungrafted model.

    A module with several names has the first that `wanted` selects.
    """
    return with_first_names({name: module for name, module in base_modules(model) if matches(name, wanted)})


def with_first_names(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return each module once, by the first of its names."""
    first_names: dict[int, str] = {}
    for name, module in modules.items():
        first_names.setdefault(id(module), name)
    return {name: modules[name] for name in first_names.values()}


def output_head(model: Any) -> nn.Module | None:
    """Return the frozen layer that computes the logits, or None if the model does not name one."""
    head: nn.Module | None = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return None if head is None else base_of(head)


def vocabulary_layers(model: Any) -> dict[str, nn.Module]:
    """Return the token embedding and the output head by their names before any graft, if the model returns them."""
    if not hasattr(model, "get_input_embeddings"):
        return {}
    try:
        ends = [base_of(model.get_input_embeddings()), output_head(model)]
    except NotImplementedError:
        return {}
    return with_first_names({name: layer for name, layer in base_modules(model) if any(layer is end for end in ends)})


def task_heads(model: nn.Module) -> list[str]:
    """Return the names of the output layers of a classifier, which are initialised at random and so have to train.

    PEFT trains the same layers for a model of this class.
    """
    endings = next((heads for name, heads in _HEADS.items() if type(model).__name__.endswith(name)), ())
    return [name for name, _ in model.named_children() if name.endswith(endings)] if endings else []


def find_stacks(modules: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Return the parameters that are stacks of matrices, as the weights of experts are, by name.

    Args:
        modules: the modules of the ungrafted model by name.
    """
    return {
        f"{path}.{name}": parameter
        for path, module in modules.items()
        if not isinstance(module, nn.modules.conv._ConvNd)
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.dim() == 3 and min(parameter.shape) > 1
    }
