"""Make the n-th operation on files fail, as on a full disk (ENOSPC) or a broken one (EIO).

Counted are: opening a file for writing, writing to it, flushing (fsync), renaming, creating folders, and the writers in
Rust (safetensors, tokenizers), which leave half a file. On a full disk, later operations fail as well.
"""

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
import safetensors.torch
import transformers
from safetensors import SafetensorError

CODES = (errno.ENOSPC, errno.EIO)


class Faults:
    """Counts the operations below a folder, and lets one of them fail."""

    def __init__(self, folder: Path, fail_at: int | None, code: int) -> None:
        self.folder, self.fail_at, self.code = folder.resolve(), fail_at, code
        self.done: list[str] = []
        """What was done, in order."""

    def point(self, what: str, path: Any) -> bool:
        """Count an operation; returns whether it is to fail."""
        if not self._is_ours(path):
            return False
        number = len(self.done)
        self.done.append(what)
        if self.fail_at is None:
            return False
        return number == self.fail_at or (self.code == errno.ENOSPC and number > self.fail_at)

    def check(self, what: str, path: Any) -> None:
        """Count an operation, and raise the error if it is to fail."""
        if self.point(what, path):
            raise OSError(self.code, os.strerror(self.code), str(path))

    @property
    def rust_text(self) -> str:
        """How Rust describes the error."""
        return f"{os.strerror(self.code)} (os error {self.code})"

    def _is_ours(self, path: Any) -> bool:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        try:
            return Path(os.fsdecode(path)).absolute().is_relative_to(self.folder)
        except TypeError:
            return False


class _File:
    """A file whose writes are counted."""

    def __init__(self, file: Any, path: Any, faults: Faults) -> None:
        self._file, self._path, self._faults = file, path, faults

    def write(self, content: Any) -> int:
        if self._faults.point("write", self._path):
            self._file.write(content[: len(content) // 2])
            self._file.flush()
            raise OSError(self._faults.code, os.strerror(self._faults.code), str(self._path))
        return self._file.write(content)

    def __enter__(self) -> "_File":
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def failing(folder: Path, fail_at: int | None = None, code: int = errno.ENOSPC) -> Iterator[Faults]:
    """Let the operation number `fail_at` below a folder fail; None: only count them."""
    faults = Faults(folder, fail_at, code)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "rename", "replace", "mkdir"):
            patch.setattr(os, name, _checked(getattr(os, name), name, faults))
        opened = _opened(builtins.open, faults)
        patch.setattr(builtins, "open", opened)
        patch.setattr(io, "open", opened)
        for module in (safetensors.torch, safetensors.numpy):
            patch.setattr(module, "serialize_file", _serialized(module.serialize_file, faults))
        save = transformers.PreTrainedTokenizerBase.save_pretrained
        patch.setattr(transformers.PreTrainedTokenizerBase, "save_pretrained", _saved(save, faults))
        yield faults


def _checked(function: Callable[..., Any], name: str, faults: Faults) -> Callable[..., Any]:
    def call(path: Any, *rest: Any, **options: Any) -> Any:
        faults.check(name, path)
        return function(path, *rest, **options)

    return call


def _opened(function: Callable[..., Any], faults: Faults) -> Callable[..., Any]:
    def call(path: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if not any(letter in mode for letter in "wax") or isinstance(path, int) or not faults._is_ours(path):
            return function(path, mode, *rest, **options)
        faults.check("open", path)
        return _File(function(path, mode, *rest, **options), path, faults)

    return call


def _serialized(function: Callable[..., Any], faults: Faults) -> Callable[..., Any]:
    def call(tensors: Any, path: Any, *rest: Any, **options: Any) -> Any:
        fails = faults.point("safetensors", path)
        function(tensors, path, *rest, **options)
        if fails:
            os.truncate(path, os.stat(path).st_size // 2)
            raise SafetensorError(f"Error while serializing: I/O error: {faults.rust_text}")

    return call


def _saved(function: Callable[..., Any], faults: Faults) -> Callable[..., Any]:
    def call(tokenizer: Any, path: Any, *rest: Any, **options: Any) -> Any:
        fails = faults.point("tokenizer", path)
        result = function(tokenizer, path, *rest, **options)
        if fails:
            raise Exception(faults.rust_text)  # which is what tokenizers raises
        return result

    return call
