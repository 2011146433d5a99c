"""Running statistics inside the frozen base (BatchNorm): used, and not moved, while an adapter trains.

In training mode BatchNorm takes the batch's statistics and writes them over its own: the base would no longer be what
it was, although no parameter of it changed, and an adapter would compute something else in training than after it.
"""

from functools import partial

from torch import nn


def freeze_batchnorm(model: nn.Module) -> None:
    """Keep every module with running statistics in evaluation mode, whatever the model's mode becomes."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
            module.eval()
            module.train = partial(_stay, module)  # type: ignore[method-assign, assignment]


def unfreeze_batchnorm(model: nn.Module) -> None:
    """Undo `freeze_batchnorm`; the modules then have the mode of `model`."""
    for module in model.modules():
        held = vars(module).get("train")
        if isinstance(held, partial) and held.func is _stay:
            del module.train
            module.train(model.training)


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module
