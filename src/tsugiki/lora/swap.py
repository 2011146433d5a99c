"""Replacing modules and parameters of a model, in a way that can be undone.

Before it makes a change, each function appends a function that undoes the change to a list. So if an error or Ctrl-C
interrupts it half way, the list can undo all changes made until then. An `Undo` may be called twice.
"""

import copy
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tsugiki.language import _
from tsugiki.lora.layer import base_of
from tsugiki.lora.shared_parameters import shared_parameters

Undo: TypeAlias = "partial[None]"
"""Undoes one replacement. A `partial`, not a closure, so that `copy.deepcopy(model)` copies it with the model."""

WeightUpdate: TypeAlias = Callable[[Tensor], Tensor]
"""Takes a weight of the base in any floating-point dtype, and returns the merged weight, in float32 or wider."""

CHILD = "tsugiki"
"""The name under which an adapter adds a submodule to a module of the base."""


def undo_all(undo: list[Undo]) -> None:
    """Undo the replacements, the last one first, and empty the list."""
    while undo:
        undo[-1]()
        undo.pop()


def replace_module(model: nn.Module, path: str, module: nn.Module, undo: list[Undo]) -> None:
    """Put `module` in the place of the submodule `path`, on its device and in its training or evaluation mode."""
    parent, _dot, child = path.rpartition(".")
    owner, before = model.get_submodule(parent), model.get_submodule(path)
    undo.append(partial(_set_module, owner, child, before))
    _set_module(owner, child, module)


def replace_parameter(model: nn.Module, path: str, tensor: Tensor, undo: list[Undo]) -> None:
    """Put `tensor` in the place of a parameter or a buffer; `path` is its name in the model before any graft."""
    owner, attribute = parameter_owner(model, path)
    before = _own_tensors(owner, attribute)[attribute]
    undo.append(partial(_set_tensor, owner, attribute, before))
    _set_tensor(owner, attribute, tensor)


def parameter_owner(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Return the module that holds the tensor `path`, a name in the model before any graft, and its name in there."""
    owner_path, _dot, attribute = path.rpartition(".")
    return base_of(model.get_submodule(owner_path)), attribute


def cast_parameters(owner: nn.Module, dtypes: Mapping[str, torch.dtype], undo: list[Undo]) -> None:
    """Let calls of `owner` compute with its own parameters cast to these dtypes, by name.

    So a layer of a 16-bit base can hold a trained parameter in 32 bits; the gradient has the parameter's dtype. Calls
    use the `forward` of the module's class.
    """
    replace_forward(owner, partial(_cast_forward, owner, dtypes), undo)


def replace_forward(owner: nn.Module, forward: Callable[..., Any], undo: list[Undo]) -> None:
    """Let calls of this module run `forward`, which must not be a closure, so that the model can be copied with it."""
    undo.append(partial(_restore_forward, owner, vars(owner).get("forward")))
    owner.forward = forward


def warn_untied_weights(model: nn.Module, copies: Mapping[str, nn.Parameter]) -> None:
    """Warn of each parameter that is shared and will train on a copy, so that it is no longer shared.

    Args:
        model: the model before the copies are in it.
        copies: name in the model before any graft -> the parameter of the base that a copy will replace.
    """
    shared = shared_parameters(model)
    for path in copies:
        others = [name for name in shared.get(path, ()) if name not in copies]
        if others:
            warnings.warn(
                _(
                    "{layer} shares its weight with {other}; the adapter trains a copy for {layer}, and {other} "
                    "keeps the base's"
                ).format(layer=path.rpartition(".")[0], other=others[0]),
                stacklevel=3,
            )


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


def _set_module(owner: nn.Module, child: str, module: nn.Module) -> None:
    """Set a child module, moved to the device and mode of the current one: the model may have moved in the meantime."""
    present = owner.get_submodule(child)
    tensor = next(chain(present.parameters(), present.buffers()), None)
    if tensor is not None:
        module.to(tensor.device)
    owner.register_module(child, module.train(present.training))


def _own_tensors(owner: nn.Module, attribute: str) -> dict[str, Any]:
    return owner._parameters if attribute in owner._parameters else owner._buffers


def _set_tensor(owner: nn.Module, attribute: str, tensor: Tensor | None) -> None:
    """Set a tensor, moved to the device of the current one: the model may have moved in the meantime."""
    tensors = _own_tensors(owner, attribute)
    present = tensors[attribute]
    if present is not None and tensor is not None and tensor.device != present.device:
        tensor.data = tensor.data.to(present.device)
    tensors[attribute] = tensor


def _cast_forward(owner: nn.Module, dtypes: Mapping[str, torch.dtype], *args: Any, **kwargs: Any) -> Any:
    """Call the module on a shallow copy with the cast parameters, since other threads may be in the same module."""
    cast = copy.copy(owner)
    vars(cast)["_parameters"] = {
        name: None if parameter is None else parameter.to(dtypes.get(name, parameter.dtype))
        for name, parameter in owner._parameters.items()
    }
    return type(owner).forward(cast, *args, **kwargs)


def _restore_forward(owner: nn.Module, before: Callable[..., Any] | None) -> None:
    if before is None:
        vars(owner).pop("forward", None)
    else:
        owner.forward = before
