"""Putting modules and parameters into a model in place of others, so that the others can come back."""

import copy
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tsugiki.lora.layer import base_of
from tsugiki.lora.shared_parameters import shared_parameters

Undo: TypeAlias = "partial[None]"
"""Brings back what something replaced. A closure would be shared by deep copies of the model, and act on the first."""

WeightUpdate: TypeAlias = Callable[[Tensor], Tensor]
"""What becomes of a parameter of the base: it, in float32 or wider -> the new one, in any dtype."""

CHILD = "tsugiki"
"""Under a module of the base, the name of what an adapter adds to it: no part of the base."""


def replace_module(model: nn.Module, path: str, module: nn.Module) -> Undo:
    """Let `module` stand at `path`, in the mode of what stood there."""
    parent, _, child = path.rpartition(".")
    owner, before = model.get_submodule(parent), model.get_submodule(path)
    owner.register_module(child, module.train(before.training))
    return partial(_bring_back, owner, child, before)


def replace_parameter(model: nn.Module, path: str, parameter: nn.Parameter) -> Undo:
    """Let `parameter` stand at `path`, a name in the model before any graft."""
    owner, attribute = parameter_owner(model, path)
    before = owner._parameters[attribute]
    _set_parameter(owner, attribute, parameter)
    return partial(_set_parameter, owner, attribute, before)


def parameter_owner(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module, below any graft, whose parameter `path` names, and the parameter's name in it."""
    owner_path, _, attribute = path.rpartition(".")
    return base_of(model.get_submodule(owner_path)), attribute


def cast_parameters(owner: nn.Module, dtypes: Mapping[str, torch.dtype]) -> Undo:
    """Let `owner` compute with its own parameters in these types, by name; their gradients come back in theirs.

    So a layer of a base in 16 bits can hold a parameter in 32. What is called is the class's own forward.
    """
    return replace_forward(owner, partial(_cast_forward, owner, dtypes))


def replace_forward(owner: nn.Module, forward: Callable[..., Any]) -> Undo:
    """Let calls of this one module go to `forward`, which copies of the model are to have too: no closure."""
    before = vars(owner).get("forward")
    owner.forward = forward
    return partial(_restore_forward, owner, before)


def warn_untied_weights(model: nn.Module, copies: Mapping[str, nn.Parameter]) -> None:
    """A parameter trained on a copy no longer shares its values; that is never done in silence.

    Args:
        model: as it stands before.
        copies: name in the model before any graft -> the base's parameter that a copy is to stand for.
    """
    shared = shared_parameters(model)
    for path in copies:
        others = [name for name in shared.get(path, ()) if name not in copies]
        if others:
            warnings.warn(
                f"{path.rpartition('.')[0]} shares its weight with {others[0]}; the adapter trains a copy for "
                f"{path.rpartition('.')[0]}, and {others[0]} keeps the base's",
                stacklevel=3,
            )


def replace_with(value: Tensor) -> WeightUpdate:
    """Of a parameter that is replaced."""
    return partial(_in_place_of, value)


def module_updates(modules: Mapping[str, nn.Module]) -> dict[str, WeightUpdate]:
    """Of the parameters and buffers of modules that are replaced, by name."""
    return {
        f"{path}.{name}": replace_with(t) for path, module in modules.items() for name, t in module.state_dict().items()
    }


def _in_place_of(value: Tensor, before: Tensor) -> Tensor:
    return value


def _bring_back(owner: nn.Module, child: str, module: nn.Module) -> None:
    owner.register_module(child, module.train(owner.get_submodule(child).training))


def _set_parameter(owner: nn.Module, attribute: str, parameter: nn.Parameter | None) -> None:
    """Put it in; it follows what stood there, should the model have gone to another device meanwhile."""
    now = owner._parameters[attribute]
    if now is not None and parameter is not None and parameter.device != now.device:
        parameter.data = parameter.data.to(now.device)
    owner._parameters[attribute] = parameter


def _cast_forward(owner: nn.Module, dtypes: Mapping[str, torch.dtype], *args: Any, **kwargs: Any) -> Any:
    """On a shallow copy that has the cast parameters: other threads may be in the same module."""
    seen = copy.copy(owner)
    vars(seen)["_parameters"] = {
        name: None if parameter is None else parameter.to(dtypes.get(name, parameter.dtype))
        for name, parameter in owner._parameters.items()
    }
    return type(owner).forward(seen, *args, **kwargs)


def _restore_forward(owner: nn.Module, before: Callable[..., Any] | None) -> None:
    if before is None:
        del owner.forward
    else:
        owner.forward = before
