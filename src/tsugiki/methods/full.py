"""Full fine-tuning: every weight of the model trains, and the result is a whole model.

    y = f(x; θ + Δ)        Δ has as many elements as θ

The trade-off: nothing limits what the model can learn, but weights, gradients and the two moments of the optimiser
take 16 bytes per parameter, every task needs a whole model, and the learning rate must be lower than an adapter's.

The result is an ordinary model folder of transformers: the configuration, `model.safetensors` and the tokenizer.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tsugiki.annotations import PreTrainedTokenizerBase
from tsugiki.base.loading import load_model
from tsugiki.dtypes import SaveDtype, torch_dtype
from tsugiki.errors import TsugikiError, error_text, summarise_list, warn_caller
from tsugiki.io.atomic import files_into
from tsugiki.io.progress import hidden_progress_bars
from tsugiki.language import _
from tsugiki.model.freeze import disable_dropout, dropout_restored

_SAVED_DROPOUT = "_tsugiki_dropout"
"""The attribute of a model that trains without dropout: its dropout probabilities before."""


@dataclass(frozen=True)
class FullConfig:
    """Full fine-tuning has no settings of its own."""


def prepare_full(model: nn.Module, config: FullConfig, *, base_dropout: bool) -> None:
    """Make every parameter of `model` trainable, and turn its dropout off unless `base_dropout` is set."""
    model.requires_grad_(True)
    if not base_dropout:
        setattr(model, _SAVED_DROPOUT, disable_dropout(model))


def save_model(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: SaveDtype = "fp32") -> None:
    """Write a model and its tokenizer into `folder`, next to the files that are there already.

    The files are written to a temporary folder and then moved one by one. The weights are moved last, so `folder`
    has weights only when the other files are complete. If the dtype cannot hold one of them, all are saved in float32,
    with a warning. The model is not changed.
    """
    saved_dtype = torch_dtype(dtype)
    largest = torch.finfo(saved_dtype).max
    too_large = [name for name, weight in model.named_parameters() if (weight.detach().abs() > largest).any()]
    if too_large:
        message = _(
            "{weights}: {dtype} cannot hold values above {largest:,.0f}; the model is saved in float32",
            weights=summarise_list(too_large),
            dtype=dtype,
            largest=largest,
        )
        warn_caller(message)
        saved_dtype = torch.float32
    converted = model if saved_dtype == next(model.parameters()).dtype else copy.deepcopy(model).to(saved_dtype)
    with files_into(folder, last="*.safetensors") as temporary:
        # A progress bar for one file has no use. config.json keeps the dropout of the base.
        with hidden_progress_bars(), dropout_restored(getattr(converted, _SAVED_DROPOUT, [])):
            converted.save_pretrained(temporary)  # type: ignore[operator]
        tokenizer.save_pretrained(temporary)


def config_to_save(model: nn.Module) -> Any:
    """Return a copy of a model's config with the dropout of the base, which `prepare_full` turns off."""
    with dropout_restored(getattr(model, _SAVED_DROPOUT, [])):
        return copy.deepcopy(model.config)


def load_weights_into(model: nn.Module, folder: Path) -> None:
    """Replace the weights of `model` by those of a model folder of the same architecture and size."""
    try:
        model.load_state_dict(load_model(str(folder)).state_dict())
    except RuntimeError as error:
        raise TsugikiError(
            "{folder} holds a model of another architecture or size: {error}", folder=folder, error=error_text(error)
        ) from error
