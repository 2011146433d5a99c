"""The identity of base models, which shows whether an adapter belongs to a base.

An adapter loads without an error into any model of the same shape, but the output is nonsense if the base is not the
one that it was trained on. So an adapter records the identity of its base, in two parts:

- the fingerprint: a digest over the tensors in the base's files, each with its name, dtype and shape. Sharding and
  casting do not change it. For a GGUF file the digest is over its quantised tensors: another quantisation changes it,
  another chat template does not;
- the settings of its config that change what is computed. Only settings that both configs have are compared, because
  a release of transformers can add one.

`load_model` records the files that it reads, and the digest is computed when it is needed. The digest of large files is
kept on the disk, by their sizes, inodes and times. If the files were changed after the model was loaded, the
fingerprint is unknown. For a model whose weights were changed in memory, the digest is that of the changed weights.
"""

import functools
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from tsugiki.annotations import PretrainedConfig
from tsugiki.base.gguf.conversion_cache import gguf_fingerprint
from tsugiki.base.model_folder import read_shards
from tsugiki.base.resolve import gguf_path, load_config, local_folder
from tsugiki.errors import TsugikiError, error_text, warn_caller
from tsugiki.io.cache import kept
from tsugiki.io.digests import FileState, combined_digest, file_state, sha256, tensor_digest
from tsugiki.io.json import flat
from tsugiki.io.shards import Shard, dtype_name, read_shard
from tsugiki.language import _
from tsugiki.model.context import text_config
from tsugiki.model.linear import CHANGED_WEIGHTS

FileStates: TypeAlias = tuple[tuple[Path, FileState], ...]
"""Paths of files and their states."""

_FILES = "_tsugiki_files"
"""The attribute of a model that holds its name and the states of the files that it was loaded from."""
_FINGERPRINT = "_tsugiki_fingerprint"
"""The attribute of a model that holds its name and the fingerprint that was computed for it."""
_LARGE = 1_000_000_000
"""The size of a model's files, in bytes, from which their fingerprint is kept on the disk."""
_NOT_COMPUTED = re.compile(r"drop|_token_id$|^initializer|^use_cache$|^pretraining_tp$|^summary_")
"""Settings that do not change what a model computes with given weights, except in training."""


class BaseIdentity(BaseModel):
    """What a base computes, as far as it is known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str | None = None
    """The digest of its weights."""
    config: Mapping[str, Any] = Field(default_factory=dict)
    """The settings of its config that change what is computed."""


def identity_of(model: nn.Module) -> BaseIdentity:
    """Return the identity of a model in which no adapter is active (see `lora.hold.base_alone`)."""
    from transformers import PretrainedConfig

    config = text_config(model)
    settings = _settings(config) if isinstance(config, PretrainedConfig) else {}
    return BaseIdentity(fingerprint=_fingerprint_of(model), config=settings)


def named_identity(name: str) -> BaseIdentity:
    """Return the identity of the model with this name (see `load_model`), as far as its files are on this machine.

    This reads all of the weights, unless their digest is cached.
    """
    settings = _settings(load_config(name).get_text_config()) if local_folder(name) is not None else {}
    return BaseIdentity(fingerprint=named_fingerprint(name), config=settings)


def why_different(one: BaseIdentity, other: BaseIdentity) -> str:
    """Return why two bases are different, as a clause for a message; empty if no difference is known."""
    if one.fingerprint and other.fingerprint and one.fingerprint != other.fingerprint:
        return _("their weights differ")
    for name in sorted(one.config.keys() & other.config.keys()):
        if one.config[name] != other.config[name]:
            values = [error_text(json.dumps(config[name]), 60) for config in (one.config, other.config)]
            return _(
                "their configs differ: {name} is {first} and {second}", name=name, first=values[0], second=values[1]
            )
    return ""


def named_fingerprint(name: str) -> str | None:
    """Return `sha256:` and 64 digits over name, dtype, shape and bytes of every tensor in the files of a model.

    None if the model is not on this machine, has no safetensors weights, or they are damaged.
    """
    return _digest_files(file_states(name))


def file_states(name: str) -> FileStates:
    """Return the files of the weights of a model that is on this machine, with their states; otherwise none."""
    gguf = gguf_path(name)
    folder = local_folder(name) if gguf is None else None
    try:
        paths = [shard.path.resolve() for shard in read_shards(folder)] if folder is not None else []
    except TsugikiError:
        return ()
    return tuple(sorted((path, file_state(path.stat())) for path in ([gguf] if gguf is not None else paths)))


def remember_files(model: nn.Module, name: str, states: FileStates) -> None:
    """Record in a model the files that it was loaded from, and their states before that."""
    setattr(model, _FILES, (name, states))


def _fingerprint_of(model: nn.Module) -> str | None:
    if getattr(model, CHANGED_WEIGHTS, False):
        return _digest_memory(model)
    name = getattr(model, "name_or_path", "")
    computed_for, fingerprint = getattr(model, _FINGERPRINT, (None, None))
    if not name or computed_for == name:
        return fingerprint
    present = file_states(name)
    read_from, states = getattr(model, _FILES, (name, present))
    if read_from == name and states != present:
        warn_caller(_("the files of {name} were changed after it was loaded; its fingerprint is unknown", name=name))
    else:
        fingerprint = _digest_files(present)
    setattr(model, _FINGERPRINT, (name, fingerprint))
    return fingerprint


def _settings(config: PretrainedConfig) -> dict[str, Any]:
    """Return the settings that a config's class declares and that change what is computed, as JSON values."""
    from transformers import PretrainedConfig

    declared = getattr(type(config), "__dataclass_fields__", {}).keys()
    declared -= getattr(PretrainedConfig, "__dataclass_fields__", {}).keys()
    computed = {
        name: value for name, value in config.to_dict().items() if name in declared and not _NOT_COMPUTED.search(name)
    }
    text = json.dumps({"model_type": config.model_type, **computed}, default=str)
    plain: dict[str, Any] = json.loads(text, parse_constant=lambda _: None)  # JSON has no infinity and no NaN
    return flat(plain)


@functools.lru_cache(maxsize=8)
def _digest_files(states: FileStates) -> str | None:
    """Digest all tensors in these files; a file that changed has another cache key. None if there are none."""
    paths = [path for path, _ in states]
    if len(paths) == 1 and gguf_path(str(paths[0])) is not None:
        return gguf_fingerprint(paths[0])
    if sum(numbers[2] for _path, numbers in states) < _LARGE:
        return _digest_of(paths)
    fingerprint: str | None = kept("fingerprints", repr(states), lambda: _digest_of(paths))
    return fingerprint


def _digest_of(paths: Iterable[Path]) -> str | None:
    digests = {name: digest for path in paths for name, digest in _digest_tensors(read_shard(path)).items()}
    return combined_digest(digests) if digests else None


def _digest_tensors(shard: Shard) -> dict[str, str]:
    with shard.path.open("rb") as file:
        return {
            name: tensor_digest(file, entry.begin, entry.end, _description(entry.dtype, entry.shape))
            for name, entry in shard.entries.items()
        }


@torch.no_grad()
def _digest_memory(model: nn.Module) -> str | None:
    """Digest the tensors of a model as they would be in a file, where tensors that share memory are stored once.

    None if a tensor is not in memory, because accelerate offloads it.
    """
    digests: dict[str, str] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            return None
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            digests[name.replace(".base_layer.", ".")] = _digest_values(tensor)
    return combined_digest(digests)


def _digest_values(tensor: Tensor) -> str:
    content = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    description = _description(dtype_name(tensor.dtype), tuple(tensor.shape))
    return sha256([description.encode(), content.data]).removeprefix("sha256:")


def _description(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype} {list(shape)} "
