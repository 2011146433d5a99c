"""Modules that train as a whole, on a copy: the modules of `modules_to_save`, and the heads of classifiers."""

import copy
from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn

from tsugiki.errors import TsugikiError, warn_caller
from tsugiki.language import _
from tsugiki.model.freeze import unfreeze_batchnorm
from tsugiki.model.undo import Wrapper
from tsugiki.model.ungrafted import base_modules, find_modules, task_heads
from tsugiki.model.weights import shared_parameters


def find_modules_to_save(model: nn.Module, wanted: Sequence[str] | None) -> dict[str, nn.Module]:
    """Find the modules that `modules_to_save` names, by their names in the ungrafted model.

    `wanted` has names or name endings. None: the output layers of a classifier, if the model is one.
    """
    found: dict[str, nn.Module] = {}
    for ending in saved_endings(model, wanted):
        modules = find_modules(model, [ending])
        if not modules:
            raise TsugikiError("modules_to_save names {wanted!r}, which the model does not have", wanted=ending)
        found.update(modules)
    return found


def saved_endings(model: nn.Module, wanted: Sequence[str] | None) -> Sequence[str]:
    """Return the names or endings of `modules_to_save`; None stands for the output layers of a classifier."""
    return task_heads(model) if wanted is None else wanted


def copies_to_save(model: nn.Module, wanted: Sequence[str] | None) -> dict[str, nn.Module]:
    """Return trainable copies of modules, by name before any graft (see `find_modules_to_save`)."""
    modules = find_modules_to_save(model, wanted)
    for path, module in modules.items():
        if any(isinstance(inner, Wrapper) for inner in module.modules()):
            raise TsugikiError(
                "modules_to_save names {path}, inside which another adapter has grafted layers", path=path
            )
    inside = {f"{path}.{name}": p for path, module in modules.items() for name, p in module.named_parameters()}
    check_trained_parameters(model, inside)
    return {path: _trained_copy(module) for path, module in modules.items()}


def saved_tensors(modules: Mapping[str, nn.Module], prefix: str) -> dict[str, Tensor]:
    """Return the tensors of modules that train as a whole by their names in a file, which begin with `prefix`."""
    return {
        f"{prefix}{path}.{name}": tensor
        for path, module in modules.items()
        for name, tensor in module.state_dict().items()
    }


def saved_in_file(model: nn.Module, wanted: Sequence[str] | None, prefix: str, file: Collection[str]) -> list[str]:
    """Return the full names of the modules that `modules_to_save` names and whose tensors are in the file.

    All names in the file begin with `prefix`. In PEFT an ending need not follow a dot, and a name that the model does
    not have is ignored: the files of classifiers name the heads of all model types. A module that the model has, and of
    which the file has no tensor, is an error.
    """
    found: list[str] = []
    owners = {key.removeprefix(prefix).rpartition(".")[0] for key in file}
    for ending in [wanted] if isinstance(wanted, str) else wanted or ():
        named = [name for name, module in base_modules(model) if name.endswith(ending) and module.state_dict()]
        held = [name for name in named if any(f"{owner}.".startswith(f"{name}.") for owner in owners)]
        if named and not held:
            raise TsugikiError(
                "modules_to_save names {ending!r}, and the file has no tensor of {path}", ending=ending, path=named[0]
            )
        found += [name for name in held if name not in found]
    return found


def names_for_file(model: nn.Module, modules: Collection[str]) -> list[str] | None:
    """Return a short `modules_to_save` with which PEFT selects exactly these modules, or None if there are none."""
    if not modules:
        return None
    others = [name for name, _ in base_modules(model) if name not in modules]
    last = {name.rpartition(".")[2] for name in modules}
    short = sorted(ending for ending in last if not any(other.endswith(ending) for other in others))
    return short + sorted(name for name in modules if not name.endswith(tuple(short)))


def check_trained_parameters(model: nn.Module, copies: Mapping[str, nn.Parameter]) -> None:
    """Check that parameters can train on copies, and warn of each that is shared, because the copy is not.

    `copies` has the parameters of the base that copies will replace, by their names in the model before any graft. The
    copies are not yet in the model.
    """
    quantized = [name for name, parameter in copies.items() if not parameter.is_floating_point()]
    if quantized:
        raise TsugikiError("{name} is quantised and cannot train; load the base unquantised", name=quantized[0])
    shared = shared_parameters(model)
    for path in copies:
        others = [name for name in shared.get(path, ()) if name not in copies]
        if others:
            message = _(
                "{layer} shares its weight with {other}; the adapter trains a copy for {layer}, and {other} "
                "keeps the base's",
                layer=path.rpartition(".")[0],
                other=others[0],
            )
            warn_caller(message)


def _trained_copy(module: nn.Module) -> nn.Module:
    copied = copy.deepcopy(module).requires_grad_(True)
    unfreeze_batchnorm(copied)  # another adapter may have frozen those of the base
    return copied
