"""The power fails at any moment of a run: what was flushed is enough to go on to the same result.

Two disks are simulated. The strict one keeps nothing but what was flushed: the content of files and the entries of
folders at their last fsync. The other keeps all names, but of files only the content that was flushed.
"""

import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.robustness.test_faults import run_of
from tsugiki.io import CHECKPOINTS
from tsugiki.training import newest_checkpoint
from tsugiki.training.run import train_steps as train_steps_module

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the names of open files are in /proc")

State = dict[str, bytes | None]
"""Path -> content of a file; None: a folder."""


class Disk:
    """Remembers what was flushed below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._held: list[int] = []  # open descriptors, so that no inode number is used twice
        self._files: dict[int, bytes] = {}
        self._folders: dict[int, dict[str, int]] = {}
        self._saved = 0
        self.states: list[tuple[str, str, int, State]] = []
        """What was done last, the disk, the step of the newest checkpoint that was complete, and what the disk has."""

    def flushed(self, descriptor: int) -> None:
        """Remember the content of an open file, or the entries of an open folder."""
        self._held.append(os.dup(descriptor))
        state = os.fstat(descriptor)
        if stat.S_ISDIR(state.st_mode):
            names = os.listdir(descriptor)
            entries = {name: os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_ino for name in names}
            self._folders[state.st_ino] = entries
        else:
            self._files[state.st_ino] = os.pread(descriptor, state.st_size, 0)

    def saved(self, step: int) -> None:
        """Remember that a checkpoint was written."""
        self._saved = step

    def event(self, what: str) -> None:
        """Remember what the disks have now."""
        inodes = {path: path.stat().st_ino for path in self.folder.rglob("*")}
        is_folder = {path.stat().st_ino for path in inodes if path.is_dir()} | set(self._folders)
        strict: State = {}
        self._collect(self.folder.stat().st_ino, Path(), is_folder, strict)
        named: State = {
            str(path.relative_to(self.folder)): None if inode in is_folder else self._files.get(inode, b"")
            for path, inode in inodes.items()
        }
        self.states += [(what, "strict", self._saved, strict), (what, "names", self._saved, named)]

    def _collect(self, inode: int, path: Path, is_folder: set[int], state: State) -> None:
        for name, child in self._folders.get(inode, {}).items():
            state[str(path / name)] = None if child in is_folder else self._files.get(child, b"")
            if child in is_folder:
                self._collect(child, path / name, is_folder, state)

    def close(self) -> None:
        for descriptor in self._held:
            os.close(descriptor)


@contextmanager
def watched(folder: Path) -> Iterator[Disk]:
    """Watch what is done below a folder."""
    disk = Disk(folder)

    def after(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *rest: Any, **options: Any) -> Any:
            result = function(target, *rest, **options)
            path = Path(os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else target).absolute()
            if path.is_relative_to(disk.folder):
                if name == "fsync":
                    disk.flushed(target)
                disk.event(f"{name} {path.name}")
            return result

        return call

    save = train_steps_module._save_checkpoint

    def saved(start: Any, base: Any, loop: Any) -> None:
        save(start, base, loop)
        disk.saved(loop.progress.step)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "rename", "replace", "mkdir", "unlink"):
            patch.setattr(os, name, after(name, getattr(os, name)))
        patch.setattr(train_steps_module, "_save_checkpoint", saved)
        try:
            yield disk
        finally:
            disk.close()


@pytest.mark.parametrize("moments", [5, pytest.param(None, marks=pytest.mark.slow, id="all")])
def test_a_run_survives_a_power_failure(moments: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, inputs = tmp_path / "work", tmp_path / "inputs"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    folder.mkdir()
    work = run_of(folder, inputs)
    with watched(folder) as disk:
        work.do()
    expected = work.results()
    for what, kind, saved, state in random.Random(0).sample(disk.states, moments or len(disk.states)):
        shutil.rmtree(folder)
        folder.mkdir()
        for name, content in state.items():
            if content is None:
                (folder / name).mkdir(parents=True, exist_ok=True)
            else:
                (folder / name).write_bytes(content)
        newest = newest_checkpoint(folder / "run" / CHECKPOINTS)
        assert (newest.step if newest else 0) >= saved, f"{kind} disk after {what}"
        run_of(folder, inputs).do()
        assert run_of(folder, inputs).results() == expected, f"{kind} disk after {what}"
