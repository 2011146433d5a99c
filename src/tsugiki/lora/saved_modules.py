"""Modules that train as a whole, on a copy: the modules of `modules_to_save`, and the heads of classifiers."""

import copy
from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn

from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.lora.config import LoraConfig
from tsugiki.lora.layer import grafted_layers
from tsugiki.lora.swap import warn_untied_weights
from tsugiki.lora.targets import base_modules, find_modules_to_save
from tsugiki.model.training_mode import unfreeze_batchnorm


def copies_to_save(model: nn.Module, wanted: Sequence[str] | None) -> dict[str, nn.Module]:
    """Return trainable copies of modules, by name before any graft.

    Args:
        model: the base.
        wanted: names or name endings. None: the output layers of a classifier, if the model is one.

    Raises:
        TsugikiError: a name matches nothing, or another adapter has grafted layers inside a named module.
    """
    modules = find_modules_to_save(model, LoraConfig(modules_to_save=wanted))
    for path in modules:
        if any(inner.startswith(f"{path}.") for inner in grafted_layers(model)):
            raise TsugikiError(
                _("modules_to_save names {path}, inside which another adapter has grafted layers").format(path=path)
            )
    inside = {f"{path}.{name}": p for path, module in modules.items() for name, p in module.named_parameters()}
    quantized = [name for name, p in inside.items() if not p.is_floating_point()]
    if quantized:
        raise TsugikiError(
            _("modules_to_save: {path} is quantised and cannot train; load the base unquantised").format(
                path=quantized[0]
            )
        )
    warn_untied_weights(model, inside)
    return {path: _trained_copy(module) for path, module in modules.items()}


def saved_tensors(modules: Mapping[str, nn.Module], prefix: str) -> dict[str, Tensor]:
    """Return the tensors of modules that train as a whole by their names in a file, which begin with `prefix`."""
    return {
        f"{prefix}{path}.{name}": tensor
        for path, module in modules.items()
        for name, tensor in module.state_dict().items()
    }


def saved_in_file(model: nn.Module, wanted: Sequence[str] | None, prefix: str, file: Collection[str]) -> list[str]:
    """Return the full names of the modules of `modules_to_save` whose tensors are in a file.

    In PEFT an ending need not follow a dot, and a name that the model does not have is ignored: the files of
    classifiers name the heads of all model types.

    Args:
        model: the base.
        wanted: `modules_to_save` in the file's config.
        prefix: the prefix of all names in the file.
        file: the names of the file's tensors.

    Raises:
        TsugikiError: the model has a module that the config names, and the file has no tensor of it.
    """
    found: list[str] = []
    owners = {key.removeprefix(prefix).rpartition(".")[0] for key in file}
    for ending in [wanted] if isinstance(wanted, str) else wanted or ():
        named = [name for name, module in base_modules(model) if name.endswith(ending) and module.state_dict()]
        held = [name for name in named if any(f"{owner}.".startswith(f"{name}.") for owner in owners)]
        if named and not held:
            raise TsugikiError(
                _("modules_to_save names {ending!r}, and the file has no tensor of {path}").format(
                    ending=ending, path=named[0]
                )
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


def _trained_copy(module: nn.Module) -> nn.Module:
    copied = copy.deepcopy(module).requires_grad_(True)
    unfreeze_batchnorm(copied)  # another adapter may have frozen those of the base
    return copied
