"""Load a quantised base tensor by tensor, so that it is never in memory in its original size, and keep it on the disk.

    config.json ──> the model without weights ──> for each tensor in the files: read, quantise, put into its place
                                              └─> or all from ~/.cache/tsugiki/quantized/<model, dtypes>-<files>/

transformers maps whole files into memory and converts layer by layer, but a mapped file stays in memory as long as one
tensor is a view of it. Here a tensor is read, quantised and freed before the next one is read, so the peak is the
finished model, one tensor, and the imported libraries.

A checkpoint whose tensors transformers must convert (stacked experts, for example) is left to transformers; then
`load_quantized` returns None.

The first half of an entry's name in the cache is a digest of the model's folder and of the dtypes, the second one of
everything that the result depends on: sizes, inodes and times of the model's files, its config, and versions. The
weights are mapped into memory, so the system may drop their pages and read them again. `TSUGIKI_CACHE_GB` limits the
size of all entries (20 by default, 0: nothing is kept); the least recently used ones are removed.
"""

import os
import re
import shutil
from collections import defaultdict
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tsugiki.annotations import PretrainedConfig, PreTrainedModel
from tsugiki.base.checks import OLD_BUFFERS
from tsugiki.base.identity import FileStates, file_states
from tsugiki.base.model_folder import map_keys, read_shards
from tsugiki.dtypes import QuantizedDtype
from tsugiki.errors import TsugikiError, warn_caller
from tsugiki.io.cache import cache_folder, check_room, folder_size, has_entry, lock_of, new_entry
from tsugiki.io.digests import sha256
from tsugiki.io.formatting import format_size
from tsugiki.io.locks import locked
from tsugiki.io.progress import ProgressDisplay
from tsugiki.io.shards import is_float, read_tensor
from tsugiki.language import _
from tsugiki.lowbit.quantization import (
    LAYERS,
    count_parameters,
    is_quantizable,
    layer_dtype,
    note_parameters,
    quantize,
    quantized_layer,
)
from tsugiki.model.meta import model_without_weights, place

LIMIT_VARIABLE = "TSUGIKI_CACHE_GB"
_DEFAULT_LIMIT = 20.0
_LEAST_BYTES = 1_000_000_000
"""The size of a model's files, in bytes, from which the quantised model is kept; a smaller one takes a few seconds."""
_VERSION = 2
"""Version of the entries. Increase it when the quantised values, or the tensors of a layer, change."""
_WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Entry:
    """The place of one quantised model in the cache, whether it is there or not."""

    model: Path
    """The folder of the model."""
    base_dtype: QuantizedDtype
    states: FileStates
    """The files of its weights, and their states."""
    folder: Path


def load_quantized(
    folder: Path, config: PretrainedConfig, dtype: torch.dtype, base_dtype: QuantizedDtype
) -> PreTrainedModel | None:
    """Load a causal language model and quantise its linear layers on the way, as `quantize` does.

    The config was compared with the weights in the folder. `dtype` is that of the activations and of everything that is
    not quantised. None if the files do not hold the tensors of the model one by one.
    """
    entry = entry_of(folder, config, dtype, base_dtype)
    model = None if entry is None else _read_from_cache(entry, config, dtype)
    if model is None:
        model = _read_from_files(folder, config, dtype, base_dtype)
        if entry is not None and model is not None:
            write_entry(entry, model)
    return model


def _read_from_cache(entry: Entry, config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel | None:
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
    folder: Path, config: PretrainedConfig, dtype: torch.dtype, base_dtype: QuantizedDtype
) -> PreTrainedModel | None:
    shards = read_shards(folder)
    shard_of = {key: shard for shard in shards for key in shard.entries}
    read = {key for key in shard_of if not OLD_BUFFERS.search(key)}
    if not all(is_float(shard_of[key].entries[key]) for key in read):
        return None
    model = model_without_weights(config)
    count = count_parameters(model)
    name_of = {key: name for name, key in map_keys(model, read).key_of.items()}
    if not _holds_all(model, read, name_of):
        return None
    tied = set(getattr(model, "all_tied_weights_keys", {}).values())
    head = model.get_output_embeddings()
    with ProgressDisplay().stage(_("loading the model"), sum(shard.size for shard in shards)) as advance:
        for key, shard in shard_of.items():
            name = name_of.get(key, "")
            path, _dot, attribute = name.rpartition(".")
            if name:
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


def _holds_all(model: PreTrainedModel, keys: Collection[str], name_of: dict[str, str]) -> bool:
    """Return whether the files hold every tensor of the model once, and no other tensor but those that it ignores."""
    ignored = [re.compile(pattern) for pattern in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    if any(key not in name_of and not any(pattern.search(key) for pattern in ignored) for key in keys):
        return False
    tied = getattr(model, "all_tied_weights_keys", {})
    names = set(name_of.values())
    return not names & tied.keys() and model.state_dict().keys() == names | tied.keys()


def entry_of(model: Path, config: PretrainedConfig, dtype: torch.dtype, base_dtype: QuantizedDtype) -> Entry | None:
    """Return the entry of a model that is to be quantised; None if it is too small, or nothing is to be kept.

    Parameters that are not quantised have the dtype `dtype`.
    """
    states = file_states(str(model))
    if not limit() or sum(path.stat().st_size for path, _state in states) < _LEAST_BYTES:
        return None
    which = sha256([repr((str(model.resolve()), str(dtype), base_dtype)).encode()]).removeprefix("sha256:")
    facts = (states, config.to_json_string(), _VERSION, version("transformers"))
    files = sha256([repr(facts).encode()]).removeprefix("sha256:")
    return Entry(model, base_dtype, states, cache_folder("quantized") / f"{which[:16]}-{files[:16]}")


def limit() -> float:
    """Return how many bytes all entries may take."""
    text = os.environ.get(LIMIT_VARIABLE) or str(_DEFAULT_LIMIT)
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e9:
        raise TsugikiError(
            "{variable} is {text}, which is no number of GB: set how much quantised models may take, or 0",
            variable=LIMIT_VARIABLE,
            text=text,
        )
    return number * 1e9


def read_entry(entry: Entry) -> dict[str, Tensor] | None:
    """Return an entry's tensors by name, memory-mapped.

    None if there is no entry, or if it is damaged; then a warning says so.
    """
    from safetensors.torch import load_file

    with ProgressDisplay().stage(_("checking the quantised model in the cache"), None):
        if not has_entry(entry.folder):
            return None
    with suppress(OSError):  # another process may have removed it
        tensors: dict[str, Tensor] = load_file(entry.folder / _WEIGHTS)
        return tensors
    return None


def write_entry(entry: Entry, model: nn.Module) -> None:
    """Write a quantised model to the cache; if that fails, a warning says why, and nothing is left behind.

    A model is not kept if its files have changed since `entry_of`, if it is larger than the limit, or if layers are in
    several places of it.
    """
    from safetensors.torch import save_file

    tensors = _tensors(model)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) if tensors else 0
    if tensors is None or size > limit():
        return
    try:
        if file_states(str(entry.model)) != entry.states:
            return
        with locked(lock_of(entry.folder), entry.folder):
            facts = {"model": str(entry.model.resolve()), "base_dtype": entry.base_dtype}
            with new_entry(entry.folder, facts) as temporary:
                _make_room(size)
                check_room(temporary.parent, 1.1 * size)
                save_file(tensors, temporary / _WEIGHTS)
    except (TsugikiError, OSError) as error:
        message = _(
            "the quantised model ({size}) is not kept for the next start: {error} ({variable}=0 turns this off)",
            size=format_size(size),
            error=error,
            variable=LIMIT_VARIABLE,
        )
        warn_caller(message)


def place_entry(model: PreTrainedModel, tensors: Mapping[str, Tensor], entry: Entry, dtype: torch.dtype) -> None:
    """Put the tensors of an entry into a model without weights, in place; `dtype` is that of the activations."""
    of_module: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        path, _dot, attribute = name.rpartition(".")
        of_module[path][attribute] = tensor
    # A linear layer without a weight was quantised; a layer that is tied to another module has no tensors here.
    codes = {
        path: {name: own.pop(name) for name in own.keys() - {"bias"}}
        for path, own in of_module.items()
        if "weight" not in own and is_quantizable(model.get_submodule(path))
    }
    for path, own in of_module.items():
        for attribute, tensor in own.items():
            place(model.get_submodule(path), attribute, tensor)
    model.tie_weights()
    head = model.get_output_embeddings()
    for path, found in codes.items():
        layer: Any = model.get_submodule(path)
        shape = layer.weight.shape if isinstance(layer, nn.Linear) else layer.weight.T.shape
        kept_as = layer_dtype(entry.base_dtype, is_head=layer is head)
        assert kept_as is not None
        model.set_submodule(path, LAYERS[kept_as].restored(tuple(shape), layer.bias, dtype, found))


def entries() -> list[Path]:
    """Return the folders of all entries, the least recently used ones first."""
    found = []
    for folder in cache_folder("quantized").glob("[!.]*"):
        with suppress(OSError):
            found.append((folder.stat().st_mtime, folder))
    return [folder for _time, folder in sorted(found)]


def _tensors(model: nn.Module) -> dict[str, Tensor] | None:
    """Return the tensors of a quantised model by name, tied tensors once; None if the model has a module twice."""
    tied = getattr(model, "all_tied_weights_keys", {})
    state = model.state_dict()
    kept = {
        name: tensor.contiguous()
        for name, tensor in state.items()
        if name not in tied or tensor.data_ptr() != state[tied[name]].data_ptr()
    }
    places = [tensor.data_ptr() for tensor in kept.values() if tensor.numel()]
    return kept if len(set(places)) == len(places) else None


def _make_room(size: int) -> None:
    """Remove the least recently used entries until there is room for `size` bytes."""
    sizes = {folder: folder_size(folder) for folder in entries()}
    for folder in list(sizes):
        if sum(sizes.values()) + size <= limit():
            break
        shutil.rmtree(folder, ignore_errors=True)
        del sizes[folder]
