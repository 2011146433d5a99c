"""Check and measure training on an accelerator, in some minutes: `python -m benchmarks.speed.gpu --out gpu`.

1. Results: the losses of a short run on the accelerator are those of the processor.
2. Profile: how much of a step of Tsugiki the accelerator is idle, how often the host waits for it, and what takes time.
3. Speed and memory of Tsugiki, PEFT with Trainer, TRL and Unsloth, where they are installed, each in its own process.

Nothing is downloaded. The folder that `--out` names gets losses.json, profile.json and results.json. Nobody has run
this on an accelerator yet; `--device cpu` runs it on the processor, in order to try it out.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from benchmarks.figures import Figures, this_machine
from benchmarks.speed.entries import TRAINING_ENTRIES, BenchmarkEntry
from benchmarks.speed.results import Results, collect, results_page
from benchmarks.speed.runner import Measurement, measure
from benchmarks.speed.tsugiki_entry import run
from benchmarks.speed.workload import WARM_UP, StepBarrier, StopRequested, Workload
from tsugiki.errors import TsugikiError
from tsugiki.io.atomic import check_writable, make_folder
from tsugiki.training.run.stages import prepared
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.settings.files import validated

_OTHERS = ("tsugiki-bf16", "tsugiki-int8", "peft-bf16-autocast", "trl")
ENTRIES: Mapping[str, BenchmarkEntry] = {
    **{name: entry for name, entry in TRAINING_ENTRIES.items() if name in _OTHERS},
    "tsugiki-no-dropout": BenchmarkEntry(
        "Tsugiki, base in bfloat16, without LoRA dropout", "benchmarks.speed.gpu:tsugiki_without_dropout", "bf16"
    ),
    "unsloth": BenchmarkEntry(
        "Unsloth, base in bfloat16, without LoRA dropout",
        "benchmarks.speed.unsloth_entry:unsloth",
        "bf16",
        requires=("unsloth",),
        install="pip install unsloth",
    ),
}
TOLERANCES = {"fp32": 1e-4, "bf16": 2**-7}
"""By dtype of the base: the largest relative difference of a loss from that of the processor in float32."""
_ROWS, _LENGTH = 8, 128  # of a step of the compared runs
_OPERATIONS = 12
_MEASUREMENT = {"en": ["measurement", "value"], "ja": ["測定項目", "値"]}

T = TypeVar("T")
tsugiki_without_dropout = partial(run, base_dtype="bf16", lora={"lora_dropout": 0.0})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the three parts, print their tables, and write them.

    Raises:
        TsugikiError: there is no accelerator, or its losses are not those of the processor.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cpu"], default="auto", help="auto: this machine's accelerator")
    parser.add_argument("--steps", type=int, default=20, help="steps of the runs whose losses are compared")
    parser.add_argument("--entries", default=",".join(ENTRIES), help="what is measured")
    parser.add_argument("--model", default="qwen3-1.7b", help="as in `python -m benchmarks.speed --list`")
    parser.add_argument("--batch", type=int, default=4, help="rows of a measured step")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--rounds", type=int, default=3, help="blocks of consecutive steps of each entry")
    parser.add_argument("--minutes", type=float, default=6, help="entries are left out that would start later")
    parser.add_argument("--out", type=Path, help="folder for losses.json, profile.json and results.json")
    options = parser.parse_args(arguments)
    command = f"python -m benchmarks.speed.gpu {shlex.join(sys.argv[1:] if arguments is None else arguments)}".strip()
    names = options.entries.split(",")
    if unknown := [name for name in names if name not in ENTRIES]:
        parser.error(f"unknown entry {', '.join(unknown)}; choose from {', '.join(ENTRIES)}")
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for all processes that are started here, also of other tools
    elif not torch.accelerator.is_available():
        raise TsugikiError("torch finds no accelerator on this machine; --device cpu tries this on the processor")
    if options.out:
        check_writable(options.out)
    end = time.monotonic() + 60 * options.minutes
    work = Workload(options.model, options.batch, options.length)

    losses = compare_losses(options.device, options.steps, command)
    print(losses.table("en").to_markdown())
    profile = in_process(profile_step, work, options.device, command)
    print(profile.table("en").to_markdown())
    results = measure_entries({name: ENTRIES[name] for name in names}, work, options.rounds, end, command)
    print(results_page(results))
    if options.out:
        make_folder(options.out)
        results.write(options.out)
        losses.write(options.out / "losses.json")
        profile.write(options.out / "profile.json")
    wrong = [row[0] for row in losses.rows if row[-1] == "no"]
    if wrong:
        raise TsugikiError(f"the losses are not those of the processor: {'; '.join(wrong)}")


def in_process(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a new process: accelerate allows only one device in each, and memory is free afterwards."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def compare_losses(device: str, steps: int, command: str) -> Figures:
    """Train the embedded model on the processor and on the device, and compare the losses of all steps."""
    reference = in_process(run_losses, "cpu", ["fp32"], steps)["fp32"]
    found = in_process(run_losses, device, list(TOLERANCES), steps)
    rows = [["processor, fp32, to compare with", f"{reference[0]:.5f}", f"{reference[-1]:.5f}", "–", "–", "–"]]
    for dtype, tolerance in TOLERANCES.items():
        losses = found[dtype]
        difference = max(abs(ours - theirs) / theirs for ours, theirs in zip(losses, reference, strict=True))
        within = "yes" if difference <= tolerance else "no"  # a loss that is not a number is not within
        figures = [f"{losses[0]:.5f}", f"{losses[-1]:.5f}", f"{difference:.1e}", f"{tolerance:.1e}", within]
        rows.append([f"{describe(device)}, {dtype}", *figures])
    headers = {
        "en": ["run", "loss of step 1", f"loss of step {steps}", "largest relative difference", "tolerance", "within"],
        "ja": ["実行", "ステップ 1 の損失", f"ステップ {steps} の損失", "最大の相対差", "許容値", "範囲内"],
    }
    return Figures(headers, rows, command)


def run_losses(device: str, dtypes: Sequence[str], steps: int) -> dict[str, list[float]]:
    """Train the embedded model on the texts of the quickstart, without dropout, for each dtype of its base.

    Returns:
        The losses of all steps, by dtype.
    """
    losses = {}
    for dtype in dtypes:
        with TemporaryDirectory() as folder:
            settings = {
                "model": "embedded",
                "data": str(files("tsugiki") / "assets" / "quickstart"),
                "out": folder,
                "device": device,
                "base_dtype": dtype,
                "batch_size": _ROWS,
                "block_size": _LENGTH,
                "max_steps": steps,
                "learning_rate": 1e-3,
                "lora": {"lora_dropout": 0.0, "target_modules": "all-linear"},
            }
            config = validated(RunConfig, settings, None)
            loop = prepared(config).loop()
            loop.run()
        losses[dtype] = [point.loss for point in loop.progress.loss_curve]
    return losses


def measure_entries(
    entries: Mapping[str, BenchmarkEntry], work: Workload, rounds: int, end: float, command: str
) -> Results:
    """Measure entries one after another, each with the whole memory of the accelerator.

    Args:
        entries: by name.
        work: the rows of a step.
        rounds: blocks of each.
        end: of `time.monotonic`; later than this, none is started.
        command: the command line, for the results.
    """
    found = []
    for name, entry in entries.items():
        if time.monotonic() < end:
            found += measure({name: entry}, work, rounds, lambda line: print(line, file=sys.stderr))
        else:
            found.append(Measurement(name, problem="left out: the time was over (--minutes)"))
    machine = this_machine()
    return collect(work, work.tokens, entries, found, {}, command, machine)


def profile_step(work: Workload, device: str, command: str) -> Figures:
    """Profile the first step after the warm-up of Tsugiki with its base in bfloat16."""
    profiler = torch.profiler.profile(activities=torch.profiler.supported_activities())  # type: ignore[no-untyped-call]
    started, seconds = 0, 0.0

    def receive() -> str:
        nonlocal started
        started += 1
        if started == WARM_UP + 1:
            profiler.start()
        return "step" if started <= WARM_UP + 1 else ""

    def send(message: dict[str, Any]) -> None:
        nonlocal seconds
        if started == WARM_UP + 1:
            profiler.stop()
            seconds = message["seconds"]

    with suppress(StopRequested):
        run(work, StepBarrier(receive, send), device=device, base_dtype="bf16")
    return Figures(_MEASUREMENT, profile_rows(profiler, seconds), command)


def profile_rows(profiler: Any, seconds: float) -> list[list[str]]:
    """Return what a profile of one step says.

    Args:
        profiler: torch's profiler, which has recorded one step.
        seconds: how long the step took, with the profiler.
    """
    events = [event for event in profiler.events() if not event.is_user_annotation]
    on_device = [event for event in events if event.device_type.name != "CPU"]
    where = "accelerator" if on_device else "processor"  # MPS has no profiler
    spans = [Span(event.time_range.start, event.time_range.end) for event in on_device or events]
    waits = sum("Synchronize" in event.name for event in events)
    rows = [
        ["step, with the profiler", f"{seconds:.3f} s"],
        [f"operations on the {where}", f"{len(spans):,}"],
        [f"part of the step in which the {where} was idle", f"{1 - busy_time(spans) / 1e6 / seconds:.0%}"],
        ["waits for the accelerator, of which two belong to the measurement", f"{waits}"],
    ]
    attribute = "self_device_time_total" if on_device else "self_cpu_time_total"
    operations = sorted(profiler.key_averages(), key=lambda one: -getattr(one, attribute))
    total = sum(getattr(one, attribute) for one in operations) or 1
    for one in operations[:_OPERATIONS]:
        microseconds = getattr(one, attribute)
        rows.append([one.key[:80], f"{microseconds / 1e3:.1f} ms, {microseconds / total:.0%}, {one.count:,} calls"])
    return rows


@dataclass(frozen=True, order=True)
class Span:
    """From when until when something ran, in microseconds."""

    start: float
    end: float


def busy_time(spans: Iterable[Span]) -> float:
    """Return for how long at least one of these ran, in microseconds."""
    busy, until = 0.0, float("-inf")
    for span in sorted(spans):
        busy += max(0.0, span.end - max(span.start, until))
        until = max(until, span.end)
    return busy


def describe(device: str) -> str:
    """Return the name of the device that is compared with the processor."""
    return "processor" if device == "cpu" else this_machine()["accelerator"] or "processor"


if __name__ == "__main__":
    try:
        main()
    except TsugikiError as error:
        sys.exit(str(error))
