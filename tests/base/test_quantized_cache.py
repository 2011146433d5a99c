"""Quantised bases are kept on the disk: the second start gives the same model, and whatever is wrong ends well."""

import errno
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

from tests.errors import assert_refused
from tests.tiny import logits, save_tiny, tiny_model
from tsugiki.base import LIMIT_VARIABLE, entries, load_model, streaming
from tsugiki.io import cache, cache_folder, folder_size
from tsugiki.lowbit import count_parameters


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(streaming, "_LEAST_BYTES", 0)


@pytest.fixture
def folder(llama: Path) -> str:
    return str(llama)


def _from_cache(folder: str, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(streaming, "_read_from_files", lambda *_: pytest.fail("quantised again"))
        return load_model(folder, dtype)


def _left() -> list[str]:
    return [path.name for path in cache_folder("quantized").rglob("*") if path.name != ".lock"]


@pytest.mark.parametrize(("kind", "dtype"), [("gpt2", "int8"), ("llama", "nf4"), ("gemma3_text", "nf4-int8")])
def test_the_second_start_gives_the_same_model(kind: str, dtype: Any, tmp_path: Path, monkeypatch: Any):
    tiny_model(kind, vocab_size=257).save_pretrained(tmp_path / "base", max_shard_size="30KB")
    folder = str(tmp_path / "base")
    first, second = load_model(folder, dtype), _from_cache(folder, dtype, monkeypatch)
    expected, found = dict(first.named_parameters()), dict(second.named_parameters())
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        assert parameter.dtype == expected[name].dtype
        assert torch.equal(parameter, expected[name]), name
        assert not parameter.requires_grad
    assert [type(module) for module in first.modules()] == [type(module) for module in second.modules()]
    assert torch.equal(logits(first), logits(second))
    assert first.state_dict().keys() == second.state_dict().keys()
    assert first.config.to_dict() == second.config.to_dict()
    assert count_parameters(first) == count_parameters(second)
    assert not second.training
    if sys.platform == "linux":
        assert streaming._WEIGHTS in Path("/proc/self/maps").read_text()


def test_a_changed_model_is_quantised_again_and_the_old_entry_removed(folder: str):
    load_model(folder, "int8")
    (before,) = entries()
    path = Path(folder) / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 2
    save_file(tensors, path, metadata={"format": "pt"})
    model = load_model(folder, "int8")
    assert torch.equal(model.model.norm.weight.float(), tensors["model.norm.weight"].to(model.dtype).float())
    assert before not in entries()
    assert len(entries()) == 1


def test_a_full_disk_is_one_line_and_nothing_is_left(folder: str, monkeypatch: pytest.MonkeyPatch):
    def fill(tensors: Any, path: Path) -> None:
        path.write_bytes(b"a part")
        raise OSError(errno.ENOSPC, "No space left on device")

    usage = type("usage", (), {"free": 100})
    for module, name, function, said in (
        (safetensors.torch, "save_file", fill, f"not kept.*No space.*{LIMIT_VARIABLE}=0"),
        (cache.shutil, "disk_usage", lambda path: usage, r"not kept.*0.1 kB"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, function)
            with pytest.warns(UserWarning, match=said):
                load_model(folder, "int8")
        assert _left() == []


def test_what_was_not_used_for_the_longest_time_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folders = [save_tiny(tmp_path / name, "llama") for name in ("one", "two", "three")]
    for number, name in enumerate(folders[:2]):
        load_model(name, "int8")
        os.utime(entries()[-1], (number, number))
    one, two = entries()
    _from_cache(folders[0], "int8", monkeypatch)  # now `two` is the older one
    monkeypatch.setenv(LIMIT_VARIABLE, str(2.5 * folder_size(one) / 1e9))
    load_model(folders[2], "int8")
    assert one in entries()
    assert two not in entries()
    assert len(entries()) == 2


def test_nothing_is_kept_where_it_is_not_wanted(folder: str, monkeypatch: pytest.MonkeyPatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for limit in ("0", "0.000001"):  # off; less than the model takes
            monkeypatch.setenv(LIMIT_VARIABLE, limit)
            load_model(folder, "int8")
        monkeypatch.delenv(LIMIT_VARIABLE)
        monkeypatch.setattr(streaming, "_LEAST_BYTES", 10**9)
        load_model(folder, "int8")
        load_model(folder, "bf16")
    assert _left() == []
    monkeypatch.setenv(LIMIT_VARIABLE, "much")
    assert_refused("much", load_model, folder, "int8")
