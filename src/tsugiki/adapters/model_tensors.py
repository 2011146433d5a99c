"""The tensors of a model folder, read one at a time."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tsugiki.adapters.files import read_json
from tsugiki.errors import TsugikiError, listed

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class StoredTensors(Mapping[str, Tensor]):
    """Name -> tensor as stored, of a folder's safetensors; a value is read, as pages of its file, when it is asked for.

    Raises:
        TsugikiError: there are no safetensors, a shard is missing or broken.
    """

    def __init__(self, folder: Path) -> None:
        self._shards: dict[str, Any] = {}
        for path in shards(folder):
            try:
                shard: Any = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise TsugikiError(f"{path} is broken: {error}") from error
            self._shards |= dict.fromkeys(shard.keys(), shard)

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._shards[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)


def shards(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, each of them there.

    Raises:
        TsugikiError: there are none, or one that the index names is missing.
    """
    if (folder / INDEX_FILE).is_file():
        names = sorted(set(read_json(folder / INDEX_FILE, missing="").get("weight_map", {}).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            raise TsugikiError(f"{folder} is not a whole model: {listed(missing) or 'every shard'} is missing")
        return [folder / name for name in names]
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    raise TsugikiError(f"{folder} has no safetensors weights: neither {WEIGHTS_FILE} nor {INDEX_FILE}")
