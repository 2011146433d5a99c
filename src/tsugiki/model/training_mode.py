"""What training mode changes inside a frozen base: dropout, which is switched off, and the statistics of BatchNorm.

Frozen weights gain nothing from dropout; it only costs time and adds noise. Models hold it in three forms: as
`nn.Dropout` modules, as bare floats that their `forward` passes on (OPT's `dropout` and `layerdrop`, BLOOM's
`hidden_dropout`, the `attention_dropout` of every SDPA attention), and as floats of the config that `forward` reads
again at every call (`self.config.hidden_dropout` in Falcon, Persimmon and BLT). Other models can be built from the same
config, so a model whose config has such floats first gets a config of its own.

In training mode BatchNorm normalises by the statistics of the batch and updates its running statistics. The base would
change although no parameter of it does, and an adapter would compute something else in training than afterwards. So
its running statistics are used but not updated.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

from torch import nn

SavedDropout = list[tuple[Any, str, Any]]
"""Module or config, attribute and former probability; then modules whose config was replaced (see `copy_configs`)."""

_SCALE = "moe_token_dropout"
"""Left as it is, because NLLB-MoE multiplies the outputs of its experts by 1 - p in evaluation: 0 would change the
model."""


def disable_dropout(model: nn.Module, saved: SavedDropout | None = None) -> SavedDropout:
    """Set every dropout probability inside `model` to 0, and return the former values for `restore_dropout`.

    Args:
        model: the model.
        saved: a list that gets the former values, each before it changes, so that an interruption can be undone.
    """
    saved = [] if saved is None else saved
    found = _find_dropout(model)
    if any(not isinstance(owner, nn.Module) for owner, _, _ in found):
        copy_configs(model, saved)
        found = _find_dropout(model)
    saved += found
    for owner, name, _ in found:
        setattr(owner, name, 0.0)
    return saved


def _find_dropout(model: nn.Module) -> SavedDropout:
    found: dict[tuple[int, str], tuple[Any, str, float]] = {}  # many modules share a config
    for module in model.modules():
        for owner in (module, vars(module).get("config")):
            names = ["p"] if isinstance(owner, nn.modules.dropout._DropoutNd) else []
            names += [name for name in getattr(owner, "__dict__", ()) if "drop" in name and name != _SCALE]
            for name in names:
                value = getattr(owner, name)
                if isinstance(value, float) and value > 0:
                    found[id(owner), name] = owner, name, value
    return list(found.values())


def restore_dropout(saved: SavedDropout) -> None:
    """Undo `disable_dropout`."""
    _set_probabilities(saved)
    restore_configs([entry for entry in saved if not isinstance(entry[2], float)])


@contextmanager
def dropout_restored(saved: SavedDropout) -> Iterator[None]:
    """Restore the probabilities within the block, so that the model's config can be written as it was."""
    _set_probabilities(saved)
    try:
        yield
    finally:
        for owner, name, value in saved:
            if isinstance(value, float):
                setattr(owner, name, 0.0)


def _set_probabilities(saved: SavedDropout) -> None:
    for owner, name, value in saved:
        if isinstance(value, float):
            setattr(owner, name, value)


def freeze_batchnorm(model: nn.Module) -> None:
    """Keep every module with running statistics in evaluation mode, whatever the model's mode becomes."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            module.eval()
            module.train = partial(_keep_mode, module)  # type: ignore[method-assign, assignment]


def unfreeze_batchnorm(model: nn.Module) -> None:
    """Undo `freeze_batchnorm`; the modules get the mode of `model`."""
    for module in model.modules():
        replaced = vars(module).get("train")
        if isinstance(replaced, partial) and replaced.func is _keep_mode:
            del module.train
            module.train(model.training)


def _keep_mode(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


Replaced: TypeAlias = list[tuple[Any, str, Any]]
"""Module, attribute, and the config that a copy has replaced."""


def copy_configs(model: nn.Module, replaced: Replaced) -> None:
    """Replace the configs that the modules of a model hold by copies, which are shared as the configs were.

    Args:
        model: the model.
        replaced: gets the configs, for `restore_configs`, before they are replaced.
    """
    copies: dict[int, Any] = {}
    for module in model.modules():
        copy.deepcopy(vars(module).get("config"), copies)
    found = [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if id(value) in copies
    ]
    replaced += found
    for module, name, value in found:
        vars(module)[name] = copies[id(value)]


def restore_configs(replaced: Replaced) -> None:
    """Put the configs back, unless a copy has been changed, as by a trainer that sets a token; the copies then stay."""
    if all(getattr(module, name) == value for module, name, value in replaced):
        for module, name, value in replaced:
            setattr(module, name, value)
