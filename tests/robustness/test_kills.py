"""SIGKILL at random moments of commands; run again until they finish, they give what an undisturbed command gives.

    TSUGIKI_KILLS=1000 TSUGIKI_MINUTES=60 pytest -n 0 -s -m slow tests/robustness/test_kills.py

kills until one of the two budgets is used up; by default 200 kills or 10 minutes, over all commands.
"""

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from tests.files import json_of
from tests.processes import Process, run_tsugiki, start
from tests.runs import short_texts, tiny_base
from tests.tiny import TEXT
from tsugiki.data import Document, open_store
from tsugiki.io import ADAPTER_FILE, MODEL_FILE, file_sha256

KILLS, MINUTES = int(os.environ.get("TSUGIKI_KILLS", "200")), float(os.environ.get("TSUGIKI_MINUTES", "10"))
_KILLS_OF_ONE = 6
"""Kills of one piece of work, before it may finish."""
_LEFT = (".part", ".removed", ".damaged")


@dataclass
class Work:
    """A command that is killed and run again, in a folder of its own."""

    call: Callable[[Path], None]
    """Run the command in this process; the argument is the folder."""
    done: Callable[[Path], bool]
    """Whether nothing remains to be done."""
    results: tuple[str, ...]
    """The files whose digests must be the same."""


def tsugiki(*arguments: str) -> None:
    torch.set_num_threads(1)
    run_tsugiki(arguments)


def train(folder: Path) -> None:
    base = "--model base-gpt2 --data texts --max-steps 6 --save-steps 1 --block-size 32 --learning-rate 0.01"
    flags = [*base.split(), "--held-out", "0.2", "--sample-tokens", "4", "--prompts", "枝を", "--out", f"{folder}/run"]
    tsugiki("train", *flags, *resume(folder))


def full(folder: Path) -> None:
    tsugiki("train", "full.yaml", "--out", f"{folder}/run", *resume(folder))


def resume(folder: Path) -> list[str]:
    return ["--resume"] if (folder / "run" / "run.json").exists() else []


def sweep(folder: Path) -> None:
    settings = yaml.safe_load(Path("sweep.yaml").read_text(encoding="utf-8"))
    (folder / "sweep.yaml").write_text(yaml.safe_dump(settings | {"out": f"{folder}/runs"}))
    tsugiki("sweep", str(folder / "sweep.yaml"))


def library(folder: Path) -> None:
    name = ["--name", "one", "--library", f"{folder}/library"]
    if not (folder / "library" / "one").exists():
        tsugiki("adapters", "add", "adapter", *name)


def cache(folder: Path) -> None:
    from tests.tiny import byte_tokenizer

    records = [Document("枝を接ぐ。" * 20, str(number)) for number in range(500)]
    open_store(records, "key", byte_tokenizer(), "all", folder)


def into(arguments: Sequence[str], path: str, folder: Path) -> None:
    """Run a command whose last argument is where it writes to."""
    tsugiki(*arguments, f"{folder}/{path}")


def change(name: str, *arguments: str) -> Work:
    """A command that reads an adapter and writes one result."""
    path = name.split("/")[0]
    return Work(partial(into, arguments, path), lambda folder: (folder / path).exists(), (name,))


def finished(folder: Path) -> bool:
    record = folder / "run" / "run.json"
    return record.exists() and json_of(record)["status"] == "finished"


WORKS = {
    "train": Work(train, finished, (f"run/{ADAPTER_FILE}",)),
    "full": Work(full, finished, (f"run/{MODEL_FILE}", "run/tokenizer.json")),
    "sweep": Work(sweep, lambda folder: False, (f"runs/lora/{ADAPTER_FILE}", f"runs/ia3/{ADAPTER_FILE}")),
    "merge": change(f"merged/{MODEL_FILE}", "merge", "--model", "base-gpt2", "--adapter", "adapter", "--out"),
    "export": change("adapter.gguf", "export", "adapter", "--model", "base-gpt2", "--gguf"),
    "library": Work(library, lambda folder: (folder / "library/one").exists(), (f"library/one/{ADAPTER_FILE}",)),
    "cache": Work(cache, lambda folder: False, ()),
}


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with what the commands read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tiny_base(tmp_path)
    short_texts(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    settings = {
        **{"model": "base-gpt2", "method": "full", "data": "text.txt", "held_out": 0.1, "max_steps": 4},
        **{"save_steps": 1, "block_size": 16, "batch_size": 2, "sample_tokens": 4, "out": "run"},
    }
    (tmp_path / "full.yaml").write_text(yaml.safe_dump(settings))
    shared = {"max_steps": 3, "save_steps": 1, "block_size": 32, "batch_size": 2, "held_out": 0.2, "prompts": []}
    runs = {"model": "base-gpt2", "data": "texts", "out": "c", "settings": shared, "methods": {"lora": {}, "ia3": {}}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(runs))
    _finish("train", tmp_path / "trained")
    (tmp_path / "trained" / "run").rename(tmp_path / "adapter")
    return tmp_path


@pytest.mark.slow
def test_killed_commands_end_with_the_same_result(inputs: Path):
    works = {name: _finish(name, inputs / f"expected-{name}") for name in WORKS}
    generator, tally, end = random.Random(time.time_ns()), Counter[str](), time.monotonic() + 60 * MINUTES
    names = list(WORKS)
    while sum(tally[f"{name} kills"] for name in names) < KILLS and time.monotonic() < end:
        name = min(names, key=lambda name: tally[f"{name} seconds"])  # an equal share of time
        started = time.monotonic()
        folder = inputs / "work"
        shutil.rmtree(folder, ignore_errors=True)
        results, seconds = works[name]
        for _ in range(_KILLS_OF_ONE):
            process = _start(name, folder)
            process.process.join(generator.uniform(0, seconds))
            if process.process.exitcode is None:
                process.kill()
                tally[f"{name} kills"] += 1
            else:
                break
        assert _finish(name, folder)[0] == results, name
        tally[f"{name} finished"] += 1
        tally[f"{name} seconds"] += int(1000 * (time.monotonic() - started))
    print()
    for name in names:
        print(f"{name}: {tally[f'{name} kills']:,} kills, {tally[f'{name} finished']:,} finished with equal digests")


def _start(name: str, folder: Path) -> Process:
    folder.mkdir(exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    return start(WORKS[name].call, folder, output=folder.with_name("output.txt"))


def _finish(name: str, folder: Path) -> tuple[dict[str, str], float]:
    """Do the work until it is done; returns the digests of its results, and the seconds that it took."""
    started = time.monotonic()
    work = WORKS[name]
    folder.mkdir(exist_ok=True)
    if not work.done(folder):
        status, printed = _start(name, folder).wait()
        assert status == 0, f"{name}: {printed}"
    files = [folder / path for path in work.results] or [path for path in folder.glob("*/*") if path.is_file()]
    left = [path for path in folder.glob("run*/**/*") if path.suffix in _LEFT]
    assert not left, f"{name} left {left}"
    return {str(path.relative_to(folder)): file_sha256(path) for path in files}, time.monotonic() - started
