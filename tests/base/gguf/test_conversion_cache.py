"""The cache of converted GGUF files: what is reused, what is converted again, and what remains after a failure."""

import errno
import hashlib
import os
import re
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import modeling_gguf_pytorch_utils
from transformers.utils import logging

from tests.base.gguf.files import Kind, tiny_base, write_gguf
from tests.errors import assert_refused
from tests.tiny import logits
from tsugiki import TsugikiError
from tsugiki.base import converted_folder, gguf_fingerprint, identity_of, load_model, local_folder
from tsugiki.base.gguf import conversion_cache

FULL = OSError(errno.ENOSPC, "No space left on device")


def base(seed: int = 0) -> Any:
    return tiny_base("llama", seed=seed, intermediate_size=64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", base(), Kind.Q8_0)


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were converted."""
    done: list[Path] = []
    write = conversion_cache.write_folder

    def counted(path: Path, *rest: Any) -> None:
        done.append(path)
        write(path, *rest)

    monkeypatch.setattr(conversion_cache, "write_folder", counted)
    return done


def debris(cache: Path) -> list[str]:
    return [entry.name for entry in cache.rglob("*") if entry.name.startswith(".") and not entry.name.endswith(".lock")]


def test_the_second_use_does_not_read_the_file(path: Path, count: list[Path], monkeypatch: pytest.MonkeyPatch):
    first = logits(load_model(str(path)))
    monkeypatch.setattr(conversion_cache, "read_model_header", None)
    again = load_model(str(path))
    assert torch.equal(logits(again), first)
    assert again.name_or_path == again.config._name_or_path == str(path)
    assert local_folder(str(path)) == converted_folder(path)
    assert len(count) == 1


def test_a_copy_shares_the_folder_and_a_changed_file_does_not(path: Path, tmp_path: Path, count: list[Path]):
    first = converted_folder(path)
    copy = Path(shutil.copy(path, tmp_path / "sha256-0123"))  # the name needs no extension
    assert converted_folder(copy) == first
    assert len(count) == 1
    state = path.stat()
    other = write_gguf(tmp_path / "other.gguf", base(seed=1), Kind.Q8_0)
    path.write_bytes(other.read_bytes())  # in place, with the same size and modification time
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size
    assert converted_folder(path) != first
    assert torch.equal(logits(load_model(str(path))), logits(load_model(str(other))))


def test_the_fingerprint_is_over_the_quantised_tensors(path: Path, tmp_path: Path, cache: Path):
    total = hashlib.sha256()
    for tensor in sorted(gguf.GGUFReader(path).tensors, key=lambda tensor: tensor.name):
        shape = tensor.shape.tolist()[::-1]
        digest = hashlib.sha256(f"{tensor.tensor_type.name} {shape} ".encode() + tensor.data.tobytes()).hexdigest()
        total.update(f"{tensor.name}\0{digest}\n".encode())
    expected = f"sha256:{total.hexdigest()}"
    assert identity_of(load_model(str(path))).fingerprint == expected
    shutil.rmtree(cache)
    assert gguf_fingerprint(path) == expected
    named = write_gguf(tmp_path / "named.gguf", base(), Kind.Q8_0, {"general.name": "another"})
    assert gguf_fingerprint(named) == expected
    assert converted_folder(named) != converted_folder(path)
    assert gguf_fingerprint(write_gguf(tmp_path / "q4.gguf", base(), Kind.Q4_1)) != expected
    assert gguf_fingerprint(write_gguf(tmp_path / "seed.gguf", base(seed=1), Kind.Q8_0)) != expected


@pytest.mark.parametrize(("where", "error"), [("config", FULL), ("weights", KeyboardInterrupt()), ("tokenizer", FULL)])
def test_an_interrupted_conversion_leaves_nothing(
    where: str, error: BaseException, path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    target = {
        "config": "transformers.PretrainedConfig.save_pretrained",
        "weights": "transformers.modeling_utils.safe_save_file",
        "tokenizer": "transformers.PreTrainedTokenizerBase.save_pretrained",
    }[where]
    with monkeypatch.context() as patched:
        patched.setattr(target, fail)
        expected = TsugikiError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected) as raised:
            converted_folder(path)
    if isinstance(error, OSError):
        assert re.search("No space left on device; .*XDG_CACHE_HOME", str(raised.value))
    assert sorted(entry.name for entry in cache.iterdir()) == [".lock", "known"]
    assert not debris(cache)
    assert logits(load_model(str(path))).isfinite().all()


def test_disk_space_is_checked_before_the_conversion(path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10))
    assert_refused(" 0.0 kB.*XDG_CACHE_HOME", converted_folder, path)
    assert not debris(cache)
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    assert_refused("tiny.gguf/tsugiki/gguf: Not a directory.*XDG_CACHE_HOME", converted_folder, path)


def test_patched_packages_are_restored(path: Path, tmp_path: Path):
    def state() -> tuple[Any, ...]:
        return modeling_gguf_pytorch_utils.tqdm, logging.is_progress_bar_enabled(), gguf.GGUFReader

    before = state()
    converted_folder(path)
    assert state() == before
    broken = write_gguf(tmp_path / "broken.gguf", base(), settings={"llama.embedding_length": 64})
    assert_refused("cannot be read", converted_folder, broken)
    assert state() == before
