"""The model of a run: which parameters train, their gradients, and how they are saved.

Adapter methods train an adapter on a frozen base; only the adapter is saved. Method `full` trains every weight and
saves a whole model. After `make_trainable`, a grafted model trains its adapter and any other model all of its weights.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from tsugiki.adapters.format import check_can_save, load_adapter_weights, save_adapter
from tsugiki.adapters.pretrained import replace_saving
from tsugiki.annotations import PreTrainedModel, PreTrainedTokenizerBase
from tsugiki.data.chat import read_template
from tsugiki.dtypes import ComputeDtype, SaveDtype, preferred_compute_dtype
from tsugiki.errors import TsugikiError
from tsugiki.fast.paths import use_fast_paths
from tsugiki.io.atomic import files_into, write_text
from tsugiki.io.file_names import CHAT_TEMPLATE_FILE, TOKENIZER_CONFIG_FILE
from tsugiki.language import marked
from tsugiki.lora.graft import trainable_parameters
from tsugiki.lora.hold import active_adapter, is_grafted
from tsugiki.lowbit.nf4 import product_dtype
from tsugiki.methods.full import load_weights_into, save_model
from tsugiki.methods.table import METHODS
from tsugiki.model.context import text_config
from tsugiki.model.products import onednn_is_faster
from tsugiki.model.ungrafted import vocabulary_layers
from tsugiki.training.model.sharding import shard
from tsugiki.training.settings.config import RunConfig

NARROW = 512
"""Full fine-tuning of a model below this width has a third of LoRA's learning rate, and keeps a copy of its start, so
that it can begin again with a lower rate. Of a wider model the copy would take too much memory."""

# They are in the record of a run, so they stay in English there.
_OFF_ADAPTER, _OFF_MODEL = marked("off while the adapter trains"), marked("off while the model trains")


def trained_tokens(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens of the words of `add_tokens`, which `run.read_texts` has added to the tokenizer."""
    if config.add_tokens is None:
        return []
    from tsugiki.base.new_words import read_words

    tokens: list[int] = tokenizer.convert_tokens_to_ids(read_words(Path(config.add_tokens)))
    return tokens


def make_trainable(
    model: PreTrainedModel,
    config: RunConfig,
    device: torch.device | None = None,
    tokens: Sequence[int] = (),
    adapter_config: Any = None,
) -> dict[str, Any]:
    """Graft the adapter, or make every weight trainable, so that `requires_grad` marks the trained parameters.

    This seeds all random generators: the seed determines the adapter's initial values. The model is changed in place;
    it will compute on `device` (None: where it is). The vectors of `tokens` train with the adapter, whose settings are
    `adapter_config` (None: those of `config`). Returns the settings that were decided here, for the run's record.
    """
    set_seed(config.seed)
    device = device or model.device
    resolved: dict[str, Any] = {}
    adapter_config = adapter_config or config.adapter_config
    if tokens:
        by_layer = dict.fromkeys(vocabulary_layers(model), tokens)  # an untied output head must predict them, too
        adapter_config = dataclasses.replace(adapter_config, trainable_token_indices=by_layer)
    METHODS[config.method].prepare(model, adapter_config, base_dropout=config.base_dropout)
    resolved["base_dropout"] = "on" if config.base_dropout else _OFF_ADAPTER if is_grafted(model) else _OFF_MODEL
    if not is_grafted(model):
        resolved["compute_dtype"] = full_compute_dtype(config, device)
        return resolved
    replace_saving(model)
    check_can_save(model)
    use_fast_paths(model, attention=device.type == "cpu")
    targets = sorted({path.rpartition(".")[2] for path in getattr(active_adapter(model), "pairs", ())})
    if targets:
        resolved["target_modules"] = targets
    if device.type == "cpu" and (multiplied := product_dtype(model)) is not None:
        resolved["product_dtype"] = multiplied
    if device.type == "cpu" and model.dtype == torch.float32:
        resolved["product_library"] = "oneDNN" if onednn_is_faster() else "torch"
    return resolved


def shard_model(model: PreTrainedModel, config: RunConfig, device: torch.device) -> None:
    """Split the weights of a prepared model over the processes, and move it to the device (see
    `training.model.sharding`).

    The whole model cannot train in float16, for which its gradients would have to be scaled.
    """
    compute_dtype = None
    if not is_grafted(model):
        name = full_compute_dtype(config, device)
        if name == "fp16":
            raise TsugikiError("full fine-tuning in shards computes in bf16 or fp32, not in fp16: set compute_dtype")
        use_fast_paths(model, attention=device.type == "cpu")
        compute_dtype = torch.bfloat16 if name == "bf16" else None
    shard(model, device, compute_dtype)


def save_trained(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    dtype: SaveDtype = "fp32",
    *,
    with_template: bool = False,
) -> None:
    """Write what was trained to `folder`: the adapter of a grafted model, otherwise the model and its tokenizer.

    If an adapter trains the vectors of tokens, the tokenizer is written as well. `dtype` is that of a whole model's
    file; adapters are always saved in float32. `with_template`: write the chat template beside an adapter, because it
    was trained with it.
    """
    if not is_grafted(model):
        save_model(model, tokenizer, folder, dtype)
        return
    template = read_template(tokenizer, str(folder)).template if with_template else None
    if getattr(active_adapter(model), "tokens", None):  # perhaps of new words
        with files_into(folder, last=TOKENIZER_CONFIG_FILE) as temporary:
            tokenizer.save_pretrained(temporary)
            if template is None:  # its presence marks adapters that were trained on conversations
                (temporary / CHAT_TEMPLATE_FILE).unlink(missing_ok=True)
    save_adapter(model, folder)
    if template is not None:
        write_text(folder / CHAT_TEMPLATE_FILE, template)


def load_trained(model: nn.Module, folder: Path) -> None:
    """Copy the values that `save_trained` wrote to `folder` into the prepared model."""
    if is_grafted(model):
        load_adapter_weights(model, folder)
    else:
        load_weights_into(model, folder)


def full_compute_dtype(config: RunConfig, device: torch.device) -> ComputeDtype:
    """Return the dtype in which the whole model computes, if all of its weights train."""
    return config.compute_dtype or preferred_compute_dtype(device)


def trained_values(model: nn.Module) -> dict[str, Tensor]:
    """Return name -> copy of each trained parameter."""
    return {name: parameter.detach().clone() for name, parameter in trainable_parameters(model).items()}


def restore_values(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Copy values from `trained_values` back into the model."""
    with torch.no_grad():
        for name, parameter in trainable_parameters(model).items():
            parameter.copy_(values[name])


def width_of(model: nn.Module) -> int:
    """Return the size of the hidden states."""
    width: int | None = getattr(text_config(model), "hidden_size", None)
    return width or model.get_input_embeddings().embedding_dim  # type: ignore[operator]
