"""Unwrap a model that is wrapped by torch.compile, data-parallel training, a value head or PEFT.

The names of layers in an adapter's file are those in the inner model, without `_orig_mod.` or `module.`.
"""

from torch import nn

from tsugiki.errors import TsugikiError
from tsugiki.language import _, marked

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

    Raises:
        TsugikiError: the model is in another wrapper, or PEFT has put an adapter into it; the message says what to
            graft instead.
    """
    while (attribute := _held_in(model)) is not None:
        if attribute in _WHY_NOT:
            raise TsugikiError(
                _("a {kind} cannot be grafted: {reason}").format(
                    kind=type(model).__name__, reason=_(_WHY_NOT[attribute])
                )
            )
        model = getattr(model, attribute)
    of_peft = [path for path, module in model.named_modules() if _is_of_peft(type(module))]
    if of_peft:
        raise TsugikiError(
            _(
                "this {kind} holds an adapter of PEFT (in {path}), which would be missing in what is saved; load the "
                "base itself, and the adapter by load_adapter(model, folder), or merge the adapter into the base with "
                "PEFT (PeftModel.from_pretrained(base, folder).merge_and_unload())"
            ).format(kind=type(model).__name__, path=of_peft[0])
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
