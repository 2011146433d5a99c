"""A model's folder: its weight files and their index, the names of its tensors, and its other files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.errors import assert_refused
from tests.tiny import DIFFERENT, save_tiny, tiny_model
from tsugiki.base import LazyTensors, load_meta_model, map_keys, read_shards, write_index


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    tiny_model(vocab_size=257).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    return tmp_path / "sharded"


def test_one_file_and_several_hold_the_same_tensors(sharded: Path, tmp_path: Path):
    whole = Path(save_tiny(tmp_path / "whole"))
    assert [shard.path.name for shard in read_shards(whole)] == ["model.safetensors"]
    assert len(read_shards(sharded)) > 1
    expected = load_file(whole / "model.safetensors")
    for folder in (whole, sharded):
        tensors = LazyTensors(folder)
        assert len(tensors) == len(expected)
        assert set(tensors) == set(expected)
        assert all(torch.equal(tensors[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("weight_map", "fact"),
    [
        (None, "weight_map"),
        ({"a": "../a.safetensors"}, "../a.safetensors"),
        ({"a": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"nothing": "FIRST"}, "nothing"),
    ],
)
def test_an_index_that_does_not_fit_the_files(weight_map: Any, fact: str, sharded: Path):
    first = sorted(path.name for path in sharded.glob("*.safetensors"))[0]
    if weight_map:
        weight_map = {key: first if file == "FIRST" else file for key, file in weight_map.items()}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for folder, said in ((sharded, fact), (sharded.parent, r"model.safetensors.*model.safetensors.index.json")):
        assert_refused(said, read_shards, folder)


@pytest.mark.parametrize("kind", DIFFERENT)
def test_every_parameter_has_a_key_or_is_converted(kind: str, tmp_path: Path):
    folder = Path(save_tiny(tmp_path / kind, kind))
    model = load_meta_model(str(folder))
    tensors = LazyTensors(folder)
    mapping = map_keys(model, tensors.keys())
    assert set(mapping.key_of.values()) <= set(tensors)
    parameters = {name for name, _ in model.named_parameters()}
    assert parameters <= set(mapping.key_of) | mapping.converted
    shapes = model.state_dict()
    assert all(tensors[key].shape == shapes[name].shape for name, key in mapping.key_of.items())


def test_the_index_counts_added_tensors(sharded: Path, tmp_path: Path):
    shard = read_shards(sharded)[0]
    key, entry = next(iter(shard.entries.items()))
    write_index(sharded, tmp_path, {"added": (shard.path.name, entry)})
    before, after = (json.loads((path / "model.safetensors.index.json").read_text()) for path in (sharded, tmp_path))
    assert after["weight_map"] == {**before["weight_map"], "added": before["weight_map"][key]}
    assert after["metadata"]["total_size"] == before["metadata"]["total_size"] + entry.end - entry.begin
    (tmp_path / "one").mkdir()
    write_index(Path(save_tiny(tmp_path / "whole")), tmp_path / "one", {})
    assert not list((tmp_path / "one").iterdir())
