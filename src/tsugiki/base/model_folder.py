"""A model as its folder stores it: which files hold the weights, under which names, and what else belongs to it."""

import math
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tsugiki.adapters.format import read_json, write_json
from tsugiki.base.loading import BESIDE_WEIGHTS
from tsugiki.errors import TsugikiError
from tsugiki.io.shards import Entry, Shard, read_shard

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG_FILE = "config.json"
ONE_FILE = "model.safetensors"
INDEX_FILE = f"{ONE_FILE}.index.json"

_EXCLUDED_FILES = (
    ".*",
    "*.index.json",
    "README*",
    "adapter_config.json",
    "tsugiki.json",
    "run.json",
    "trainer_state.json",
)
"""Of what else is called so: the weights' index is written anew, a model's card is of that model, the rest of a run."""


def read_shards(folder: Path) -> list[Shard]:
    """The files that hold a model's weights: one, or those that an index names, as transformers chooses.

    Raises:
        TsugikiError: no weights there, or a file that is missing or not whole.
    """
    if (folder / ONE_FILE).is_file():
        return [read_shard(folder / ONE_FILE)]
    path = folder / INDEX_FILE
    missing = f"{folder} has no safetensors weights: neither {ONE_FILE} nor {INDEX_FILE} is there"
    names = read_json(path, missing).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise TsugikiError(f"{path} has no weight_map of tensors and files")
    outside = [name for name in names.values() if Path(name).name != name]
    if outside:
        raise TsugikiError(f"{path} names {outside[0]!r}, which is no file of this folder")
    shards = [read_shard(folder / name) for name in sorted(set(names.values()))]
    there = {key: shard.path.name for shard in shards for key in shard.entries}
    wrong = [key for key, name in names.items() if there.get(key) != name]
    if wrong:
        raise TsugikiError(f"{path} looks for {wrong[0]} in {names[wrong[0]]}, where it is not")
    return shards


class StoredTensors(Mapping[str, Tensor]):
    """Key in the files of a model's folder -> tensor as stored, read, as pages of its file, when it is asked for.

    Raises:
        TsugikiError: as for `read_shards`.
    """

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Any] = {}
        for shard in read_shards(folder):
            try:
                file: Any = safe_open(shard.path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise TsugikiError(f"{shard.path} is broken: {error}") from error
            self._files |= dict.fromkeys(shard.entries, file)

    def __getitem__(self, key: str) -> Tensor:
        tensor: Tensor = self._files[key].get_tensor(key)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


@dataclass(frozen=True)
class StoredNames:
    """How the tensors of a model's files are called in the model."""

    keys: Mapping[str, str]
    """Name in the model -> key in the files, of tensors that are in both as they are."""
    converted: frozenset[str]
    """Names in the model of what is put together, or taken apart, from the tensors of the files."""


def stored_names(model: "PreTrainedModel", keys: Collection[str]) -> StoredNames:
    """As transformers would load these keys into `model`."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    rules = get_model_conversion_mapping(model)
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    renamings = [rule for rule in rules if not isinstance(rule, WeightConverter)]
    names, prefix = model.state_dict(), model.base_model_prefix
    found: dict[str, str] = {}
    converted = set()
    for key in sorted(keys):
        name, converter = rename_source_key(key, renamings, converters, prefix, names)
        if name not in names and key in names:  # a rule for other files of this kind, as the loader has it
            name, converter = rename_source_key(key, [], [], prefix, names)
        if name in names and converter is None:
            found[name] = key
        elif converter is not None:
            converted.add(name)
    return StoredNames(found, frozenset(converted))


def shared_parameters(model: nn.Module) -> dict[str, list[str]]:
    """Name of a parameter -> the names of all that are one with it, its own among them, where there are several."""
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return {name: group for group in found.values() if len(group) > 1 for name in group}


def copy_other_files(folder: Path, out: Path, config: Mapping[str, Any]) -> None:
    """Copy what belongs to the model besides its weights: config, tokenizer, settings of generation, licence.

    Args:
        folder: the model's.
        out: where to; what is there is replaced.
        config: fields of config.json that are to be others.

    Raises:
        OSError: a file cannot be read or written.
    """
    found = [*folder.iterdir(), *(folder / "additional_chat_templates").glob("*.jinja")]
    for path in found:
        if path.is_file() and _belongs(path):
            target = out / path.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
    if config:
        fields = read_json(out / CONFIG_FILE, missing=f"{folder} has no {CONFIG_FILE}")
        inner = fields.get("text_config")
        if isinstance(inner, dict):
            fields["text_config"] = inner | {name: value for name, value in config.items() if name in inner}
        write_json(out / CONFIG_FILE, {**fields, **config})


def write_index(folder: Path, out: Path, added: Mapping[str, tuple[str, Entry]]) -> None:
    """Write the index of the files, where a model has one, with tensors that have come to one of them.

    Args:
        folder: the model's.
        out: where to.
        added: key -> the name of its file, and a tensor that it is like.

    Raises:
        OSError: it cannot be written.
    """
    if (folder / ONE_FILE).is_file():
        return
    index = read_json(folder / INDEX_FILE, missing=f"{folder / INDEX_FILE} is missing")
    index["weight_map"] |= {key: name for key, (name, _) in added.items()}
    totals = index.get("metadata") or {}
    for _, entry in added.values():
        for name, more in (("total_size", entry.end - entry.begin), ("total_parameters", math.prod(entry.shape))):
            if name in totals:
                totals[name] += more
    write_json(out / INDEX_FILE, index)


def _belongs(path: Path) -> bool:
    def is_one_of(patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(path.name, pattern) for pattern in patterns)

    return is_one_of(BESIDE_WEIGHTS) and not is_one_of(_EXCLUDED_FILES)
