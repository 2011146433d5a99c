"""The two ways of a run, an adapter or the whole model: what trains, how it is stored, how its gradients are found."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from tsugiki.adapters.format import WEIGHTS_FILE, refill_adapter, save_adapter
from tsugiki.base.loading import load_model
from tsugiki.dtypes import BaseDtype, SaveDtype, preferred_compute_dtype
from tsugiki.fast.paths import use_fast_paths
from tsugiki.io.file_names import MODEL_FILE
from tsugiki.lora.graft import active_adapter
from tsugiki.methods.full import load_weights_into, save_model
from tsugiki.methods.table import METHODS
from tsugiki.train.config import RunConfig
from tsugiki.train.gradients import Gradients

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Way:
    """What differs between the two."""

    weights: str
    """The file by which a folder is known to hold what comes of it."""
    load: Callable[[RunConfig], "PreTrainedModel"]
    """The base, in the type that is computed with."""
    begin: Callable[["PreTrainedModel", RunConfig], dict[str, Any]]
    """Make the model ready and leave `requires_grad` on what trains; returns what was chosen, for the record."""
    gradients: Callable[["PreTrainedModel", RunConfig], Gradients]
    """What computes loss and gradients of a batch."""
    save: Callable[[nn.Module, "PreTrainedTokenizerBase", Path, SaveDtype], None]
    """Write what trains to a folder, in the type of this name where that is a whole model."""
    refill: Callable[[nn.Module, Path], None]
    """Put the values stored in a folder back into the model."""


_ADAPTER_GROUP = 512  # tokens: enough for efficient products, and their activations stay small
_MODEL_GROUP = 1024  # a group's gradients are as large as the model, so fewer groups


def base_precision(config: RunConfig) -> BaseDtype:
    """What the base of an adapter is held in."""
    if config.base_dtype is not None:
        return config.base_dtype
    return "fp32" if config.part_of_the_base_trains() else preferred_compute_dtype()


def way_of(config: RunConfig) -> Way:
    """The way that a run with these settings takes."""
    return ADAPTER if METHODS[config.method].trains_adapter else MODEL


def _begin_adapter(model: "PreTrainedModel", config: RunConfig) -> dict[str, Any]:
    METHODS[config.method].prepare(model, config.adapter_config(), config.base_dropout)
    use_fast_paths(model, loss=False)  # `Gradients` calls the loss itself
    targets = sorted({path.rpartition(".")[2] for path in active_adapter(model).wrapped})
    return {
        "base_dropout": "on" if config.base_dropout else "off while the adapter trains",
        **({"target_modules": targets} if targets else {}),
        "base_dtype": base_precision(config),
    }


def _adapter_gradients(model: "PreTrainedModel", config: RunConfig) -> Gradients:
    return Gradients(model, model, _ADAPTER_GROUP, ordered=config.base_dropout)


def _begin_full(model: "PreTrainedModel", config: RunConfig) -> dict[str, Any]:
    METHODS[config.method].prepare(model, config.adapter_config(), config.base_dropout)
    return {
        "base_dropout": "on" if config.base_dropout else "off while the model trains",
        "compute_dtype": config.compute_dtype or preferred_compute_dtype(),
    }


def _full_gradients(model: "PreTrainedModel", config: RunConfig) -> Gradients:
    short = (config.compute_dtype or preferred_compute_dtype()) == "bf16"
    computing = copy.deepcopy(model).bfloat16() if short else model
    use_fast_paths(computing, loss=False)
    return Gradients(model, computing, _MODEL_GROUP, ordered=config.base_dropout)


ADAPTER = Way(
    weights=WEIGHTS_FILE,
    load=lambda config: load_model(config.model, base_precision(config)),
    begin=_begin_adapter,
    gradients=_adapter_gradients,
    save=lambda model, tokenizer, folder, dtype: save_adapter(model, folder),
    refill=refill_adapter,
)
MODEL = Way(
    weights=MODEL_FILE,
    load=lambda config: load_model(config.model, base_precision(config)),
    begin=_begin_full,
    gradients=_full_gradients,
    save=save_model,
    refill=load_weights_into,
)
