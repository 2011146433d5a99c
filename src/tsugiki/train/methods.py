"""What differs between the methods of training: what trains, how it is stored, and how its gradients are found.

A method is four functions and a file name; a new one is a new row of `METHODS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from tsugiki.adapters.files import WEIGHTS_FILE, refill_adapter, save_adapter
from tsugiki.lora.dropout import silence_dropout
from tsugiki.lora.graft import active_adapter, graft
from tsugiki.train.config import RunConfig
from tsugiki.train.gradients import Gradients, native_arithmetic
from tsugiki.train.model_files import MODEL_FILE, refill_model, save_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Method:
    """A way to train a model."""

    weights: str
    """The file by which a folder is known to hold what this method makes."""
    begin: Callable[["PreTrainedModel", RunConfig], dict[str, Any]]
    """Make the model ready and leave `requires_grad` on what trains; returns what was chosen, for the record."""
    gradients: Callable[["PreTrainedModel", RunConfig], Gradients | None]
    """What computes loss and gradients of a batch; None leaves it to Trainer."""
    save: Callable[[nn.Module, "PreTrainedTokenizerBase", Path, str], None]
    """Write what trains to a folder, in the type of this name where the method stores a whole model."""
    refill: Callable[[nn.Module, Path], None]
    """Put the values stored in a folder back into the model."""


def _begin_lora(model: "PreTrainedModel", config: RunConfig) -> dict[str, Any]:
    graft(model, config.lora, base_dropout=config.base_dropout)
    return {
        "base_dropout": "on" if config.base_dropout else "off while the adapter trains",
        "target_modules": sorted({path.rpartition(".")[2] for path in active_adapter(model).pairs}),
    }


def _begin_full(model: "PreTrainedModel", config: RunConfig) -> dict[str, Any]:
    model.requires_grad_(True)
    if not config.base_dropout:
        silence_dropout(model)
    return {
        "base_dropout": "on" if config.base_dropout else "off while the model trains",
        "arithmetic": config.arithmetic or native_arithmetic(),
    }


def _full_gradients(model: "PreTrainedModel", config: RunConfig) -> Gradients:
    # Dropout draws from one generator, so that batches side by side would draw by turns of luck.
    return Gradients(model, config.arithmetic or native_arithmetic(), side_by_side=not config.base_dropout)


METHODS: Mapping[str, Method] = {
    "lora": Method(
        weights=WEIGHTS_FILE,
        begin=_begin_lora,
        gradients=lambda model, config: None,
        save=lambda model, tokenizer, folder, dtype: save_adapter(model, folder),
        refill=refill_adapter,
    ),
    "full": Method(
        weights=MODEL_FILE, begin=_begin_full, gradients=_full_gradients, save=save_model, refill=refill_model
    ),
}
