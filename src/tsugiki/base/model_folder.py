"""Read the folder of a model in Hugging Face's format: its weight files, the tensors in them, and its other files."""

import math
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tsugiki.annotations import PreTrainedModel
from tsugiki.errors import TsugikiError, error_text
from tsugiki.io.file_names import (
    ADAPTER_CONFIG_FILE,
    CHAT_TEMPLATES_FOLDER,
    MANIFEST_FILE,
    METADATA_FILE,
    MODEL_CONFIG_FILE,
    MODEL_FILE,
    MODEL_INDEX_FILE,
    OTHER_MODEL_FILES,
    RECORD_FILE,
)
from tsugiki.io.json import read_json, write_json
from tsugiki.io.shards import Entry, Shard, read_shard
from tsugiki.language import _

_NOT_COPIED = (
    *(".*", "*.index.json", "README*", "trainer_state.json"),
    *(ADAPTER_CONFIG_FILE, MANIFEST_FILE, METADATA_FILE, RECORD_FILE),
)
"""Patterns of files that match `OTHER_MODEL_FILES` and are not copied: the index of the weights is written anew, a
README describes the original model, and the others belong to adapters, training runs and caches."""


def weight_files(folder: Path) -> dict[str, str]:
    """Return the index of a model's weights: key of a tensor -> name of its file.

    Empty if there is no index, because the model has one file.
    """
    if (folder / MODEL_FILE).is_file():
        return {}
    path = folder / MODEL_INDEX_FILE
    missing = _(
        "{folder} has no safetensors weights: neither {file} nor {index} exists",
        folder=folder,
        file=MODEL_FILE,
        index=MODEL_INDEX_FILE,
    )
    if not path.is_file() and any(folder.glob("pytorch_model*.bin")):
        missing += _("; convert its pickled weights, which are not loaded")
    file_of = read_json(path, missing).get("weight_map")
    if not isinstance(file_of, dict) or not all(isinstance(file, str) for file in file_of.values()):
        raise TsugikiError("{path} has no weight_map from tensors to files", path=path)
    for file in set(file_of.values()):
        if not file.endswith(".safetensors") or Path(file).name != file or "\\" in file or not file.isprintable():
            raise TsugikiError(
                "{path} names {file}, which is not a safetensors file of this folder",
                path=path,
                file=error_text(repr(file), 100),
            )
    return file_of


def read_shards(folder: Path) -> list[Shard]:
    """Read the headers of a model's weight files: the one file, or else those that the index names, and must fit."""
    file_of = weight_files(folder)
    if not file_of:
        return [read_shard(folder / MODEL_FILE)]
    shards = [read_shard(folder / file) for file in sorted(set(file_of.values()))]
    found_in = {key: shard.path.name for shard in shards for key in shard.entries}
    wrong = [key for key, file in file_of.items() if found_in.get(key) != file]
    if wrong:
        path = folder / MODEL_INDEX_FILE
        raise TsugikiError(
            "{path} says that {name} is in {file}, but it is not",
            path=path,
            name=error_text(wrong[0]),
            file=file_of[wrong[0]],
        )
    return shards


@dataclass(frozen=True)
class KeyMapping:
    """The correspondence between the names of a model's tensors and the keys in its files."""

    key_of: Mapping[str, str]
    """Name in the model -> key in the files, for tensors that are the same in both."""
    converted: frozenset[str]
    """Names in the model of tensors that transformers makes by splitting or joining tensors of the files."""


def map_keys(model: PreTrainedModel, keys: Collection[str]) -> KeyMapping:
    """Map the names of a model's tensors to all keys in its files, by the rules by which transformers loads them.

    The shapes of the model are enough.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    rules = get_model_conversion_mapping(model)
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    renamings = [rule for rule in rules if not isinstance(rule, WeightConverter)]
    names, prefix = model.state_dict(), model.base_model_prefix
    key_of: dict[str, str] = {}
    converted = set()
    for key in sorted(keys):
        name, converter = rename_source_key(key, renamings, converters, prefix, names)
        if name not in names and key in names:  # the key has its name already; transformers' loader does the same
            name, converter = rename_source_key(key, [], [], prefix, names)
        if name in names and converter is None:
            key_of[name] = key
        elif converter is not None:
            converted.add(name)
    return KeyMapping(key_of, frozenset(converted))


def model_files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Return the files of a model whose names match one of the patterns, those of its further chat templates, too."""
    candidates = [*folder.iterdir(), *(folder / CHAT_TEMPLATES_FOLDER).glob("*.jinja")]
    return [path for path in candidates if _matches(path, patterns)]


def copy_other_files(folder: Path, out: Path, config: Mapping[str, Any]) -> None:
    """Copy a model's files other than its weights to `out`: config, tokenizer, generation settings, licence.

    Files of the same names are replaced. In the copy of config.json, the fields in `config` have its values.
    """
    for path in model_files(folder, OTHER_MODEL_FILES):
        if path.is_file() and not _matches(path, _NOT_COPIED):
            target = out / path.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
    if config:
        fields = read_json(
            out / MODEL_CONFIG_FILE, missing=_("{folder} has no {file}", folder=folder, file=MODEL_CONFIG_FILE)
        )
        inner = fields.get("text_config")
        if isinstance(inner, dict):
            fields["text_config"] = inner | {name: value for name, value in config.items() if name in inner}
        write_json(out / MODEL_CONFIG_FILE, {**fields, **config})


def write_index(folder: Path, out: Path, added: Mapping[str, tuple[str, Entry]]) -> None:
    """Write the index of a model's weight files after tensors were added to them; a single file has no index.

    `added` maps the key of a new tensor to the name of its file, and the entry of a tensor with its dtype and shape.
    """
    if (folder / MODEL_FILE).is_file():
        return
    index = read_json(folder / MODEL_INDEX_FILE, missing=_("{path} is missing", path=folder / MODEL_INDEX_FILE))
    index["weight_map"] |= {key: file for key, (file, _) in added.items()}
    totals = index.get("metadata") or {}
    for _other, entry in added.values():
        for name, more in (("total_size", entry.end - entry.begin), ("total_parameters", math.prod(entry.shape))):
            if name in totals:
                totals[name] += more
    write_json(out / MODEL_INDEX_FILE, index)


def _matches(path: Path, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path.name, pattern) for pattern in patterns)
