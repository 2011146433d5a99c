"""BatchNorm inside the frozen base: its running statistics are used but not updated while an adapter trains.

In training mode BatchNorm normalises by the statistics of the batch and updates its running statistics. The base would
change although no parameter of it does, and an adapter would compute something else in training than afterwards.
"""

from functools import partial

from torch import nn


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
