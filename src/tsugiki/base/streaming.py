"""Load a quantised base tensor by tensor, so that it is never in memory in its original size.

    config.json ──> the model without weights ──> for each tensor in the files: read, quantise, put into its place
                                              └─> or all from the cache of quantised models (`quantized_cache`)

transformers maps whole files into memory and converts layer by layer, but a mapped file stays in memory as long as one
tensor is a view of it. Here a tensor is read, quantised and freed before the next one is read, so the peak is the
finished model, one tensor, and the imported libraries.

A checkpoint whose tensors transformers must convert (stacked experts, for example) is left to transformers; then
`load_quantized` returns None.
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from tsugiki.base.checks import OLD_BUFFERS
from tsugiki.base.model_folder import map_keys, read_shards
from tsugiki.base.quantized_cache import Entry, entry_of, place_entry, read_entry, write_entry
from tsugiki.base.quantized_files import StoredNf4, is_stored_in_4_bits, stored_layers
from tsugiki.dtypes import QuantizedDtype
from tsugiki.errors import TsugikiError
from tsugiki.io.progress import ProgressDisplay
from tsugiki.io.shards import is_float, read_tensor
from tsugiki.language import _
from tsugiki.lowbit.quantization import (
    count_parameters,
    is_quantizable,
    layer_dtype,
    note_parameters,
    quantize,
    quantized_layer,
)
from tsugiki.lowbit.quantized_layer import QuantizedLayer
from tsugiki.model.meta import model_without_weights, place

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def load_quantized(
    folder: Path, config: "PretrainedConfig", dtype: torch.dtype, base_dtype: QuantizedDtype
) -> "PreTrainedModel | None":
    """Load a causal language model and quantise its linear layers on the way, as `quantize` does.

    Args:
        folder: the model's folder, whose weights were compared with the config.
        config: its config.
        dtype: the dtype of the activations, and of everything that is not quantised.
        base_dtype: the dtype of the linear layers. Layers that bitsandbytes has stored in 4 bits keep their codes.

    Returns:
        The model, in evaluation mode; None if its files do not hold the tensors of the model one by one.
    """
    entry = None if is_stored_in_4_bits(config) else entry_of(folder, config, dtype, base_dtype)
    model = None if entry is None else _read_from_cache(entry, config, dtype)
    if model is None:
        model = _read_from_files(folder, config, dtype, base_dtype)
        if entry is not None and model is not None:
            write_entry(entry, model)
    return model


def _read_from_cache(entry: Entry, config: "PretrainedConfig", dtype: torch.dtype) -> "PreTrainedModel | None":
    tensors = read_entry(entry)
    if tensors is None:
        return None
    model = model_without_weights(config)
    count = count_parameters(model)
    place_entry(model, tensors, entry, dtype)
    quantize(model, dtype, entry.base_dtype)  # nothing is left to quantise; this freezes, casts and sets the dtype
    note_parameters(model, count)
    return model


def _read_from_files(
    folder: Path, config: "PretrainedConfig", dtype: torch.dtype, base_dtype: QuantizedDtype
) -> "PreTrainedModel | None":
    shards = read_shards(folder)
    shard_of = {key: shard for shard in shards for key in shard.entries}
    stored = stored_layers(shard_of) if is_stored_in_4_bits(config) else {}
    read = {key for key in shard_of if not OLD_BUFFERS.search(key)}
    read -= {part for layer in stored.values() for part in layer.tensors() if part not in stored}
    if not all(is_float(shard_of[key].entries[key]) for key in read if key not in stored):
        return None
    settings = getattr(config, "quantization_config", None)
    if stored:
        config.quantization_config = None
    model = model_without_weights(config)
    count = count_parameters(model)
    name_of = {key: name for name, key in map_keys(model, read).key_of.items()}
    if not _holds_all(model, read, name_of):
        config.quantization_config = settings
        return None
    tied = set(getattr(model, "all_tied_weights_keys", {}).values())
    head = model.get_output_embeddings()
    with ProgressDisplay().stage(_("loading the model"), sum(shard.size for shard in shards)) as advance:
        for key, shard in shard_of.items():
            name = name_of.get(key, "")
            path, _dot, attribute = name.rpartition(".")
            if key in stored:
                _place_stored(model, path, stored[key], dtype)
            elif name:
                layer, tensor = model.get_submodule(path), read_tensor(shard, key)
                kept_as = layer_dtype(base_dtype, is_head=layer is head)
                if kept_as is None or attribute != "weight" or not is_quantizable(layer):
                    place(layer, attribute, tensor if name in tied else tensor.to(dtype))
                else:
                    place(layer, attribute, tensor)
                    model.set_submodule(path, quantized_layer(path, layer, dtype, kept_as))
            entry = shard.entries[key]
            advance(entry.end - entry.begin)
    model.tie_weights()
    quantize(model, dtype, base_dtype)  # a head that is tied to the embedding, and the dtype of everything else
    note_parameters(model, count)
    return model


def _holds_all(model: "PreTrainedModel", keys: Collection[str], name_of: dict[str, str]) -> bool:
    """Return whether the files hold every tensor of the model once, and no other tensor but those that it ignores."""
    ignored = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    if any(key not in name_of and not any(pattern.search(key) for pattern in ignored) for key in keys):
        return False
    tied = getattr(model, "all_tied_weights_keys", {})
    names = set(name_of.values())
    return not names & tied.keys() and model.state_dict().keys() == names | tied.keys()


def _place_stored(model: nn.Module, path: str, stored: StoredNf4, dtype: torch.dtype) -> None:
    layer = model.get_submodule(path)
    if not isinstance(layer, nn.Linear):
        raise TsugikiError(_("{path} is stored in 4 bits, which only linear layers can be").format(path=path))
    quantized: QuantizedLayer = stored.read(tuple(layer.weight.shape), dtype)
    quantized.bias = layer.bias
    model.set_submodule(path, quantized)
