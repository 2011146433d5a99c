"""The modules of a model by their names before any graft, whether it is wrapped and adapters are attached or not.

A model may be wrapped by torch.compile, data-parallel training, a value head or PEFT. The names of layers in an
adapter's file are those in the inner model, without `_orig_mod.` or `module.`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from torch import nn

from tsugiki.errors import TsugikiError
from tsugiki.language import _, marked
from tsugiki.model.linear import is_graftable
from tsugiki.model.names import Names, matches
from tsugiki.model.undo import CHILD, base_of

T = TypeVar("T")

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


def with_first_names(named: Mapping[str, T]) -> dict[str, T]:
    """Return each module or tensor once, by the first of its names."""
    first_names: dict[int, str] = {}
    for name, item in named.items():
        first_names.setdefault(id(item), name)
    return {name: named[name] for name in first_names.values()}


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
    """Return the parameters of ungrafted modules that are stacks of matrices, as the weights of experts are."""
    return {
        f"{path}.{name}": parameter
        for path, module in modules.items()
        if not isinstance(module, nn.modules.conv._ConvNd)
        for name, parameter in module._parameters.items()
        if parameter is not None and parameter.dim() == 3 and min(parameter.shape) > 1
    }


def stack_endings(modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the last parts of the names of all stacks of matrices (see `find_stacks`)."""
    return _last_components(find_stacks(modules))


def list_graftable(layers: Mapping[str, nn.Module]) -> str:
    """Return a part of a message: which layers and parameters of an ungrafted model can get pairs."""
    endings = _last_components(name for name, layer in layers.items() if is_graftable(layer))
    if not endings:
        return _("the model has no layer that can be grafted")
    stacks = ", ".join(stack_endings(layers))
    hint = (
        _("; the weights of its experts are parameters (target_parameters: {stacks})", stacks=stacks) if stacks else ""
    )
    return _("these can be grafted: {endings}{hint}", endings=", ".join(endings), hint=hint)


def _last_components(names: Iterable[str]) -> list[str]:
    """Return the last parts of names, each once."""
    return sorted({name.rpartition(".")[2] for name in names})


# Classes are recognised by their names, because importing all of them would be slow.
_HELD_IN = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "DeepSpeedEngine": "module",
    "PeftModel": "base_model",
    "PeftMixedModel": "base_model",
    "BaseTuner": "model",  # between a PeftModel and the model
}
"""Class of a wrapper -> the attribute in which it holds the model."""
_VALUE_HEAD = "pretrained_model"
"""The attribute in which models with a value head hold the model, in TRL and in libraries that follow it."""
_WHY_NOT = {
    "module": marked(
        "parameters that are added later are not synchronised; graft model.module, and wrap it afterwards"
    ),
    "base_model": marked("it holds an adapter of PEFT; graft what model.merge_and_unload() or model.unload() returns"),
    "model": marked("it holds an adapter of PEFT; graft what model.merge_and_unload() or model.unload() returns"),
    _VALUE_HEAD: marked("the value head must stay trainable; graft model.pretrained_model"),
}


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside of all wrappers, or `model` itself if it is not wrapped."""
    while (attribute := _held_in(model)) is not None:
        model = getattr(model, attribute)
    return model


def unwrapped_to_graft(model: nn.Module) -> nn.Module:
    """Return the model inside of `torch.compile`, which compiles it again after its layers have changed.

    A model in another wrapper, or with an adapter of PEFT in it, is an error whose message says what to graft instead.
    """
    while (attribute := _held_in(model)) is not None:
        if attribute in _WHY_NOT:
            raise TsugikiError(
                "a {kind} cannot be grafted: {reason}", kind=type(model).__name__, reason=_(_WHY_NOT[attribute])
            )
        model = getattr(model, attribute)
    of_peft = [path for path, module in model.named_modules() if _is_of_peft(type(module))]
    if of_peft:
        raise TsugikiError(
            "this {kind} holds an adapter of PEFT (in {path}), which would be missing in what is saved; load the "
            "base itself, and the adapter by load_adapter(model, folder), or merge the adapter into the base with "
            "PEFT (PeftModel.from_pretrained(base, folder).merge_and_unload())",
            kind=type(model).__name__,
            path=of_peft[0],
        )
    return model


def _is_of_peft(kind: type) -> bool:
    return any(parent.__module__.startswith("peft.") for parent in kind.__mro__)


def _held_in(model: nn.Module) -> str | None:
    """Return the attribute in which a wrapper holds its model; None if `model` is not a wrapper."""
    for kind in type(model).__mro__:
        if kind.__name__ in _HELD_IN:
            return _HELD_IN[kind.__name__]
    return _VALUE_HEAD if _VALUE_HEAD in model._modules else None
