"""Safetensors files that are read and copied tensor by tensor, against the safetensors library."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.errors import assert_refused
from tests.tiny import seeded
from tsugiki.io import is_float, read_shard, read_tensor, write_shard

TENSORS = {
    "a": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
    "b": torch.randn(4, dtype=torch.float32, generator=seeded(0)),
    "codes": torch.arange(5, dtype=torch.int8),
    "empty": torch.zeros(0, 3),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


def test_tensors_are_read_one_by_one(path: Path):
    shard = read_shard(path)
    assert shard.size == path.stat().st_size
    assert {key: entry.shape for key, entry in shard.entries.items()} == {k: tuple(t.shape) for k, t in TENSORS.items()}
    assert [key for key, entry in shard.entries.items() if not is_float(entry)] == ["codes"]
    for key in ("a", "b", "empty"):
        assert torch.equal(read_tensor(shard, key), TENSORS[key])
    assert_refused(r"codes .*I8", read_tensor, shard, "codes")


def test_a_copy_without_changes_is_the_same_file(path: Path, tmp_path: Path):
    done: list[int] = []
    write_shard(read_shard(path), tmp_path / "copy", {}, {}, done.append)
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()
    assert sum(done) == path.stat().st_size


def test_tensors_are_changed_and_added(path: Path, tmp_path: Path):
    changed, new = TENSORS["a"] * 2, TENSORS["b"] + 1
    write_shard(
        read_shard(path), tmp_path / "copy", {"a": lambda: changed}, {"new": ("b", lambda: new)}, lambda done: None
    )
    found = load_file(tmp_path / "copy")
    assert found.keys() == {*TENSORS, "new"}
    for key, expected in {**TENSORS, "a": changed, "new": new}.items():
        assert torch.equal(found[key], expected)


def test_incomplete_files_are_one_line(path: Path, tmp_path: Path):
    content = path.read_bytes()
    for length in (len(content) - 1, 20, 3, 0):
        path.write_bytes(content[:length])
        assert_refused(r"model\.safetensors is broken", read_shard, path)
    assert_refused("missing", read_shard, tmp_path / "nowhere")


@pytest.mark.parametrize(
    "entry",
    [
        3,
        {"dtype": "F32", "shape": [1], "data_offsets": [0]},
        {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1 << 62] * 65, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 40]},
        {"dtype": "BF16", "shape": [1], "data_offsets": [0, 4]},
    ],
)
def test_damaged_headers_are_one_line(entry: object, path: Path):
    for header in ({"a": entry}, [entry]):
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
        assert_refused(f"{path} is broken", read_shard, path)


def test_a_file_that_is_changed_while_it_is_copied_is_an_error(path: Path, tmp_path: Path):
    shard = read_shard(path)
    path.write_bytes(path.read_bytes()[:-8])
    assert_refused(r"model\.safetensors", write_shard, shard, tmp_path / "copy", {}, {}, lambda done: None)
