"""Short training runs of a tiny model, and runs that are interrupted and resumed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.errors import refused
from tests.tiny import TEXT, byte_tokenizer, save_tiny, store_of
from tsugiki.data import Blocks, pack
from tsugiki.fast import detect_document_masking
from tsugiki.io import ADAPTER_FILE, CHECKPOINTS, checkpoints
from tsugiki.training import RunConfig, RunRecord, TrainingLoop, choices_for, start_accelerator, train
from tsugiki.training.run import start as run_start
from tsugiki.training.step.setup import build_loop

TRAIN = (
    *("--data", "text.txt", "--out", "run", "--max-steps", "2", "--block-size", "32", "--learning-rate", "0.01"),
    *("--sample-tokens", "4"),
)
"""Flags of `tsugiki train` for a short run in the working directory of the command line's tests."""


def tiny_base(folder: Path, kind: str = "gpt2") -> str:
    """The path of a tiny model in `folder`, which is saved on the first call."""
    base = folder / f"base-{kind}"
    return str(base) if base.exists() else save_tiny(base, kind)


def short_texts(folder: Path) -> str:
    """The path of four short documents in `folder`, which are written on the first call."""
    texts = folder / "texts"
    if not texts.exists():
        texts.mkdir()
        for i in range(4):
            (texts / f"{i}.txt").write_text(f"{i}\n" + TEXT[i * 300 : i * 300 + 400])
    return str(texts)


def run_config(folder: Path, out: str = "run", **changes: Any) -> RunConfig:
    """Settings of a short run of a tiny GPT-2 on four short documents, into the folder `out`; all are in `folder`."""
    fields: dict[str, Any] = {
        "model": changes.get("model") or tiny_base(folder),
        "data": changes.get("data") or short_texts(folder),
        "out": str(folder / out),
        "max_steps": 4,
        "batch_size": 2,
        "block_size": 32,
        "learning_rate": 1e-2,
        "held_out": 0.2,
        "save_steps": 2,
        "prompts": ["枝を"],
        "validation": "none",
        "sample_tokens": 4,
    }
    given = fields | changes
    if given["max_steps"] is None:  # the default, beside which `minutes` may be set
        del given["max_steps"]
    return RunConfig.model_validate(given)


def interrupt(run: Callable[[Any], Any], config: Any, step: int) -> None:
    """Start a run and raise KeyboardInterrupt in it before the optimiser step `step`, counted from 0."""

    train_step = TrainingLoop.train_step

    def interrupted(loop: TrainingLoop, stop: bool = False) -> None:
        if loop.progress.step == step:
            raise KeyboardInterrupt
        train_step(loop, stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLoop, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(config)


def train_until(step: int | None, folder: Path, out: str, settings: dict[str, Any]) -> None:
    """Start or resume a run, and end it before the optimiser step `step`; None: at its end."""
    config = run_config(folder, out, **settings)
    run = partial(train, resume=(Path(config.out) / "run.json").exists())
    if step is None:
        run(config)
    else:
        interrupt(run, config, step)


def assert_resumes(run: Any, config: Any, step: int, files: Sequence[str] = (ADAPTER_FILE,)) -> RunRecord:
    """Interrupt a run before `step`, resume it, and compare it with a run that was never interrupted.

    Args:
        run: `train`, or what takes the same arguments.
        config: the settings of the run. The folder `out` gets two runs: `whole`, and `cut` that is resumed.
        step: the optimiser step before which the run is interrupted, counted from 0.
        files: files whose bytes must be the same in both runs. An interrupted run must not have the first one.

    Returns:
        The record of the run that was never interrupted.
    """
    whole, cut = Path(config.out) / "whole", Path(config.out) / "cut"
    expected: RunRecord = run(config.model_copy(update={"out": str(whole)}))
    config = config.model_copy(update={"out": str(cut)})
    interrupt(run, config, step)
    saved = range(config.save_steps, step + 1, config.save_steps)[-2:]
    newest = checkpoints(cut / CHECKPOINTS)[-2:]
    assert [path.name for path in newest] == [f"checkpoint-{n}" for n in saved]
    assert not (cut / files[0]).exists()
    with refused("--resume"):
        run(config)
    resumed: RunRecord = run(config, resume=True)
    for name in files:
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    assert resumed.loss_curve == expected.loss_curve
    assert resumed.evaluations == expected.evaluations
    assert resumed.samples == expected.samples
    for name in ("loss", "tokens"):
        assert getattr(resumed.training, name) == getattr(expected.training, name)
    with refused("finished"):
        run(config, resume=True)
    return expected


def counted_runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Return a list that gets the folder of each run of a sweep, and whether it is resumed."""
    runs: list[tuple[str, bool]] = []
    start_or_resume = run_start.start_or_resume

    def counted(accelerator: Any, settings: Any, out: Path, resume: bool, overwrite: bool) -> Any:
        runs.append((out.name, resume))
        return start_or_resume(accelerator, settings, out, resume, overwrite)

    monkeypatch.setattr(run_start, "start_or_resume", counted)
    return runs


def loop_of(
    config: RunConfig, model: Any, blocks: Blocks | None = None, accelerator: Any = None, masking: Any = None
) -> TrainingLoop:
    """The loop of a prepared model; by default on the processor, with `uneven_blocks`."""
    blocks = blocks or uneven_blocks()
    chosen = choices_for(config, model, len(blocks), blocks.block_size)
    masking = masking or detect_document_masking(model)
    return build_loop(accelerator or start_accelerator("cpu"), config, chosen, model, blocks, masking)


def uneven_blocks() -> Blocks:
    """Sixteen rows that hold different numbers of learned tokens."""
    ids = byte_tokenizer()(TEXT, add_special_tokens=False).input_ids
    rows = [ids[row * 20 : row * 20 + 20] for row in range(16)]
    return pack(store_of(rows, prompts={row: 2 + row for row in range(16)}), np.arange(16), 20, pad=0)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use so many threads; with one, groups of rows are computed in order."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


one_thread = partial(threads, 1)
