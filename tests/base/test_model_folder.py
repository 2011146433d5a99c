"""A model's folder: its weight files and their index, the names of its tensors, and its other files."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.errors import assert_refused
from tests.tiny import tiny_model
from tsugiki.base import read_shards


@pytest.mark.parametrize(
    ("weight_map", "fact"),
    [
        (None, "weight_map"),
        ({"a": "../a.safetensors"}, "../a.safetensors"),
        ({"a": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"nothing": "FIRST"}, "nothing"),
    ],
)
def test_an_index_that_does_not_fit_the_files(weight_map: Any, fact: str, tmp_path: Path):
    sharded = tmp_path / "sharded"
    tiny_model(vocab_size=257).save_pretrained(sharded, max_shard_size="20KB")
    first = sorted(path.name for path in sharded.glob("*.safetensors"))[0]
    if weight_map:
        weight_map = {key: first if file == "FIRST" else file for key, file in weight_map.items()}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for folder, said in ((sharded, fact), (tmp_path, r"model.safetensors.*model.safetensors.index.json")):
        assert_refused(said, read_shards, folder)
