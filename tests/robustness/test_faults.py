"""Every operation on files fails in turn: the error is one line, nothing is lost, and the same is done afterwards."""

import errno
import os
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.robustness.faults import CODES, failing
from tests.runs import run_config
from tests.tiny import byte_tokenizer, shake, tiny_model
from tsugiki import LoraConfig, TsugikiError, graft, save_adapter
from tsugiki.adapters import check_adapter, copy_into_library, rename_adapter
from tsugiki.data import Document, open_store
from tsugiki.io import ADAPTER_FILE, CHECKPOINTS, MODEL_FILE, RECORD_FILE, checkpoints
from tsugiki.training import newest_checkpoint, read_record, train

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the names of open files are in /proc")


@dataclass
class Work:
    """Something that writes to a folder."""

    do: Callable[[], object]
    """Do it, or go on with what was done."""
    results: Callable[[], dict[str, bytes]]
    """The files that must be the same as if nothing had failed."""
    check: Callable[[str], object] = lambda text: None
    """Check what is there after an error with this text."""


def run_of(folder: Path, inputs: Path, **changes: Any) -> Work:
    """A short run."""
    small = {"max_steps": 3, "save_steps": 1, "prompts": [], "lora": {"r": 1, "target_modules": ["c_attn"]}}
    settings = {name: value for name, value in {**small, **changes}.items() if value is not None}
    config = run_config(inputs, **settings).model_copy(update={"out": str(folder / "run")})
    out = folder / "run"

    def check(text: str) -> None:
        assert ("make room" in text) == (os.strerror(errno.ENOSPC) in text)
        if checkpoints(out / CHECKPOINTS):
            assert text.endswith("continue with --resume")
            newest = newest_checkpoint(out / CHECKPOINTS)
            assert newest is not None
            assert newest.folder == checkpoints(out / CHECKPOINTS)[-1]

    def results() -> dict[str, bytes]:
        assert [path for path in folder.rglob("*") if path.suffix in (".part", ".removed", ".damaged")] == []
        name = MODEL_FILE if config.method == "full" else ADAPTER_FILE
        return {name: (out / name).read_bytes()}

    def do() -> None:
        resume = (out / RECORD_FILE).exists()
        if not resume or read_record(out).status != "finished":  # only the last flush has failed
            train(config, resume)

    return Work(do, results, check)


def saving_of(folder: Path, inputs: Path) -> Work:
    """Saving an adapter into a folder."""
    model = tiny_model()
    graft(model, LoraConfig(r=2, target_modules=["c_attn"]))
    shake(model)
    return Work(partial(save_adapter, model, folder / "adapter"), partial(_files, folder))


def library_of(folder: Path, inputs: Path) -> Work:
    """Adding an adapter to a library, and renaming it."""
    if not inputs.exists():
        saving_of(inputs, inputs).do()

    def do() -> None:
        if not (folder / "new").exists():
            if not (folder / "old").exists():
                copy_into_library(inputs / "adapter", folder, "old")
            rename_adapter("old", "new", folder)

    def check(text: str) -> None:
        for path in folder.iterdir():
            if path.name in ("old", "new"):
                check_adapter(path)

    return Work(do, partial(_files, folder), check)


def cache_of(folder: Path, inputs: Path) -> Work:
    """Writing tokens into the cache."""
    tokenizer, records = byte_tokenizer(), [Document("枝を接ぐ。" * 9, str(number)) for number in range(70)]
    return Work(lambda: open_store(records, "key", tokenizer, "all", folder), partial(_files, folder))


KINDS: dict[str, Callable[[Path, Path], Work]] = {
    "run": run_of,
    "full run": partial(run_of, method="full", lora=None, max_steps=2),
    "saving": saving_of,
    "library": library_of,
    "cache": cache_of,
}


SOME = [("run", 5), ("saving", 20), ("library", 20), ("cache", 10)]
EVERY = [pytest.param(kind, sys.maxsize, marks=pytest.mark.slow, id=f"{kind}-all") for kind in KINDS]


@pytest.mark.parametrize(("kind", "count"), [*SOME, *EVERY])
def test_a_failing_disk_loses_nothing(kind: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """So many points of some work fail, one at a time."""
    folder, inputs = tmp_path / "work", tmp_path / "inputs"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    work = _new(kind, folder, inputs)
    with failing(folder) as counted:
        work.do()
    expected = work.results()
    points = [(point, code) for code in CODES for point in range(len(counted.done))]
    for point, code in random.Random(kind).sample(points, min(count, len(points))):
        where = f"{kind}, {errno.errorcode[code]} at {point}: {counted.done[point]}"
        work = _new(kind, folder, inputs)
        try:
            with failing(folder, point, code):
                work.do()
        except TsugikiError as error:
            text = str(error)
            assert "\n" not in text, where
            assert os.strerror(code) in text, f"{where}: {text}"
            work.check(text)
            work.do()
        assert work.results() == expected, where


def _new(kind: str, folder: Path, inputs: Path) -> Work:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return KINDS[kind](folder, inputs)


def _files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock" and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
