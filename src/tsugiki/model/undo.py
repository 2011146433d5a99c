"""Changing a model in a way that can be undone: other modules, parameters or `forward`s in the place of its own.

Before it makes a change, each function appends a function that undoes the change to a list. So if an error or Ctrl-C
interrupts it half way, the list can undo all changes made until then. An `Undo` may be called twice.

A layer that is wrapped keeps its name: the functions take the names that modules had before (see `Wrapper`). A layer to
which a small module is attached is not replaced: the module becomes its child called `CHILD`, and a hook calls it.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Undo: TypeAlias = "partial[None]"
"""Undoes one change. A `partial`, not a closure, so that `copy.deepcopy(model)` copies it with the model."""

CHILD = "tsugiki"
"""The name under which a submodule is added to a module of the base (see `attach`)."""

Hook = Callable[..., Any]
"""A forward hook, (layer, args, kwargs, output) -> output, or a pre-hook, (layer, args, kwargs) -> (args, kwargs)."""


class Wrapper(nn.Module):
    """A layer around a frozen one, `base_layer`."""

    base_layer: Any


def base_of(layer: nn.Module) -> nn.Module:
    """Return the frozen layer inside of a wrapper; any other layer is returned as it is."""
    return layer.base_layer if isinstance(layer, Wrapper) else layer


def undo_all(undo: list[Undo]) -> None:
    """Undo the changes, the last one first, and empty the list."""
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


def replace_forward(owner: nn.Module, forward: Callable[..., Any], undo: list[Undo]) -> None:
    """Let calls of this module run `forward`, which must not be a closure, so that the model can be copied with it.

    Undoing it leaves a module as it is whose `forward` another library has wrapped since then.
    """
    undo.append(partial(_restore_forward, owner, vars(owner).get("forward"), forward))
    owner.forward = forward


def replaced_forward(owner: nn.Module) -> Any:
    """Return the function that a module runs instead of its class's `forward`, without its arguments, or None."""
    forward = vars(owner).get("forward")
    return getattr(forward, "func", forward)


def set_attribute(owner: nn.Module, name: str, value: object, undo: list[Undo]) -> None:
    """Set an attribute of a module's instance; undoing it restores the class's own."""
    undo.append(partial(_remove_attribute, owner, name))
    setattr(owner, name, value)


def cast_parameters(owner: nn.Module, dtypes: Mapping[str, torch.dtype], undo: list[Undo]) -> None:
    """Let calls of `owner` compute with its own parameters cast to these dtypes, by name.

    So a layer of a 16-bit base can hold a trained parameter in 32 bits; the gradient has the parameter's dtype. Calls
    use the `forward` of the module's class.
    """
    replace_forward(owner, partial(_cast_forward, owner, dtypes), undo)


def with_parameters(module: nn.Module, parameters: Mapping[str, Any]) -> Any:
    """Return a shallow copy of a module with other values for some of its parameters, by name.

    Calls of `type(module).forward` on the copy leave the module as it is, since other threads may be in it.
    """
    copied = copy.copy(module)
    vars(copied)["_parameters"] = {**module._parameters, **parameters}
    return copied


def with_modules(module: nn.Module, modules: Mapping[str, nn.Module | None]) -> Any:
    """Return a shallow copy of a module with other children, by name, as `with_parameters` does."""
    copied = copy.copy(module)
    vars(copied)["_modules"] = {**module._modules, **modules}
    return copied


def attach(
    layer: nn.Module, module: nn.Module, undo: list[Undo], *, before: Hook | None = None, after: Hook | None = None
) -> None:
    """Make `module` a child of `layer`, on its device and in its mode, with hooks that compute with `attached(layer)`.

    The layer must not have such a child yet. `before` is a pre-hook and `after` a forward hook of the layer; neither
    may be a closure, so that the model can be copied.
    """
    undo.append(partial(_detach, layer, before, after))
    tensor = next(chain(layer.parameters(), layer.buffers()), None)
    layer.register_module(CHILD, module.to(None if tensor is None else tensor.device).train(layer.training))
    if before is not None:
        layer.register_forward_pre_hook(before, with_kwargs=True)
    if after is not None:
        layer.register_forward_hook(after, with_kwargs=True)


def attached(layer: nn.Module) -> Any:
    """Return the module that is attached to the layer; None if there is none."""
    return layer._modules.get(CHILD)


def remove_hook(layer: nn.Module, hook: Hook) -> None:
    """Remove the latest hook with this function.

    Hooks are found by their function, not by a handle: after `copy.deepcopy`, a handle belongs to the original.
    """
    for hooks in (layer._forward_pre_hooks, layer._forward_hooks):
        for key in [key for key, found in hooks.items() if found is hook][-1:]:
            del hooks[key]
            layer._forward_pre_hooks_with_kwargs.pop(key, None)
            layer._forward_hooks_with_kwargs.pop(key, None)


def attach_output_module(layer: nn.Module, module: nn.Module, undo: list[Undo]) -> None:
    """Apply `module` to the output of `layer`: to the tensor, or to the first element of the tuple."""
    attach(layer, module, undo, after=_change_output)


def attach_input_module(layer: nn.Module, module: nn.Module, undo: list[Undo]) -> None:
    """Apply `module` to the first argument of `layer`."""
    attach(layer, module, undo, before=_change_input)


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
    cast = {name: own.to(dtypes[name]) for name, own in owner._parameters.items() if own is not None and name in dtypes}
    return type(owner).forward(with_parameters(owner, cast), *args, **kwargs)


def _restore_forward(owner: nn.Module, before: Callable[..., Any] | None, ours: Callable[..., Any]) -> None:
    if vars(owner).get("forward") is not ours:
        return
    if before is None:
        del owner.forward
    else:
        owner.forward = before


def _remove_attribute(owner: nn.Module, name: str) -> None:
    vars(owner).pop(name, None)


def _detach(layer: nn.Module, before: Hook | None, after: Hook | None) -> None:
    layer._modules.pop(CHILD, None)
    for hook in (before, after):
        if hook is not None:
            remove_hook(layer, hook)


def _change_output(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    module = attached(layer)
    return (module(output[0]), *output[1:]) if isinstance(output, tuple) else module(output)


def _change_input(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return (attached(layer)(args[0]), *args[1:]), kwargs
