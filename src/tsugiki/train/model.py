"""The model of a run: the dtype to load it in, which parameters train, their gradients, and how they are saved.

Adapter methods train an adapter on a frozen base; only the adapter is saved. Method `full` trains every weight and
saves a whole model. After `prepare_model`, a grafted model trains its adapter and any other model all of its weights.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import set_seed

from tsugiki.adapters.format import load_adapter_weights, save_adapter
from tsugiki.base.replica import bfloat16_replica
from tsugiki.dtypes import BaseDtype, SaveDtype, preferred_compute_dtype
from tsugiki.fast.paths import use_fast_paths
from tsugiki.lora.graft import active_adapter, is_grafted
from tsugiki.methods.full import load_weights_into, save_model
from tsugiki.methods.table import METHODS
from tsugiki.train.config import RunConfig
from tsugiki.train.gradients import Gradients

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ADAPTER_GROUP = 512  # tokens: enough for efficient products, and their activations stay small
_MODEL_GROUP = 1024  # the gradients of a group are as large as the model, so there should be few groups


def load_dtype(config: RunConfig) -> BaseDtype:
    """Return the dtype in which the run loads its base model."""
    if config.base_dtype is not None:
        return config.base_dtype
    return "fp32" if config.trains_base_parameters() else preferred_compute_dtype()


def prepare_model(model: "PreTrainedModel", config: RunConfig) -> dict[str, Any]:
    """Graft the adapter, or make every weight trainable, so that `requires_grad` marks the trained parameters.

    This seeds all random generators: the seed determines the adapter's initial values.

    Args:
        model: the base model; it is changed in place.
        config: the settings of the run.

    Returns:
        The settings that were decided here, for the run's record.

    Raises:
        TsugikiError: the adapter does not fit the model.
    """
    set_seed(config.seed)
    resolved: dict[str, Any] = {}
    METHODS[config.method].prepare(model, config.adapter_config, config.base_dropout)
    what = "adapter" if is_grafted(model) else "model"
    resolved["base_dropout"] = "on" if config.base_dropout else f"off while the {what} trains"
    if not is_grafted(model):
        resolved["compute_dtype"] = _compute_dtype(config)
        return resolved
    use_fast_paths(model, loss=False)  # `Gradients` computes the loss itself
    targets = sorted({path.rpartition(".")[2] for path in active_adapter(model).wrapped})
    if targets:
        resolved["target_modules"] = targets
    resolved["base_dtype"] = load_dtype(config)
    return resolved


def make_gradients(model: "PreTrainedModel", config: RunConfig) -> Gradients:
    """Return the object that computes loss and gradients of the prepared model."""
    if is_grafted(model):
        return Gradients(model, model, _ADAPTER_GROUP, ordered=config.base_dropout)
    computing = bfloat16_replica(model) if _compute_dtype(config) == "bf16" else model
    use_fast_paths(computing, loss=False)
    return Gradients(model, computing, _MODEL_GROUP, ordered=config.base_dropout)


def save_trained(
    model: nn.Module, tokenizer: "PreTrainedTokenizerBase", folder: Path, dtype: SaveDtype = "fp32"
) -> None:
    """Write what was trained to `folder`: the adapter of a grafted model, otherwise the model and its tokenizer.

    Args:
        model: a model that `prepare_model` has changed.
        tokenizer: the model's tokenizer.
        folder: created if it does not exist.
        dtype: the dtype of a whole model's file. Adapters are always saved in float32.

    Raises:
        TsugikiError: the folder cannot be written.
    """
    if is_grafted(model):
        save_adapter(model, folder)
    else:
        save_model(model, tokenizer, folder, dtype)


def load_trained(model: nn.Module, folder: Path) -> None:
    """Copy the values that `save_trained` wrote to `folder` into the prepared model.

    Raises:
        TsugikiError: the folder holds nothing that fits the model.
    """
    if is_grafted(model):
        load_adapter_weights(model, folder)
    else:
        load_weights_into(model, folder)


def _compute_dtype(config: RunConfig) -> str:
    return config.compute_dtype or preferred_compute_dtype()
