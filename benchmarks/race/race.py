"""A race: the wall time from the start of a process until its adapter reaches a held-out loss.

Each tool is started by a public command or a short script, alone on the machine, one after another, for each seed.
While it runs, every adapter that it writes is copied. Afterwards all copies are scored on the held-out text by
`tsugiki.evaluate`. The goal is the loss that PEFT at its best reaches at the end of one pass, for each seed. A tool has
reached it with its first adapter of that loss or a lower one, at the time when that file was written.

    peft-best        `peft_process` at its best. Its learning rate, the rows of its steps and its attention are searched
                     for with the first seed; glibc keeps freed memory, as in Tsugiki
    peft-documented  `peft_process` as PEFT's documentation writes it, three passes
    trl              `trl sft` with the settings of TRL's documentation for PEFT, three passes
    tsugiki          `tsugiki train` with its default settings

The competitors do not evaluate while they train, which saves their time; Tsugiki does what it always does.
"""

import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import psutil
import torch
from safetensors import SafetensorError, safe_open

from benchmarks import child_environment
from benchmarks.figures import Figures
from benchmarks.speed.entries import INSTALL, TRAINING_ENTRIES
from tsugiki.base.loading import load_model, load_tokenizer
from tsugiki.data.read.files import read_records
from tsugiki.data.records import Completion, Document, Record
from tsugiki.dtypes import preferred_compute_dtype
from tsugiki.errors import TsugikiError
from tsugiki.io.atomic import make_folder
from tsugiki.io.digests import file_sha256
from tsugiki.io.file_names import ADAPTER_CONFIG_FILE, ADAPTER_FILE
from tsugiki.io.formatting import format_gigabytes
from tsugiki.io.json import write_json

BEST = "peft-best"
OTHERS = ("peft-documented", "trl", "tsugiki")
"""The tools that race against PEFT at its best."""
HEADERS = {
    "en": ["tool", "seconds to the loss, by seed", "× as fast as peft-best", "lowest loss, by seed", "peak memory"],
    "ja": [
        "ツール",
        "損失に達するまでの秒数（シード順）",
        "peft-best に対する速さ（倍）",
        "最小の損失（シード順）",
        "最大メモリ",
    ],
}
_PASSES = 3
_KEEP_MEMORY = TRAINING_ENTRIES["peft-bf16-malloc"].environment
_POLL = 0.1  # seconds


@dataclass(frozen=True)
class Inputs:
    """What all tools train on, in files that each tool reads."""

    model: Path
    data: Path
    held_out: Path
    has_texts: bool
    """Whether the records are texts; otherwise they are prompts with completions."""

    def losses(self, adapters: Sequence[Path]) -> list[float]:
        """Return the held-out loss of each adapter, in nats per token. Equal files are evaluated once."""
        from tsugiki import evaluate

        digests = [file_sha256(path / ADAPTER_FILE) for path in adapters]
        names = {digest: str(path) for digest, path in zip(digests, adapters, strict=True)}
        template = None if self.has_texts else "none"
        found = evaluate(str(self.held_out), model=str(self.model), adapter=[*names.values()], chat_template=template)
        losses = [result.loss for result in list(found.values())[-len(names) :]]  # after that of the base
        by_digest = dict(zip(names, losses, strict=True))
        return [by_digest[digest] for digest in digests]


@dataclass
class ToolRun:
    """What one process of a tool reached. Times are in seconds from its start, memory is in bytes."""

    tool: str
    seed: int
    seconds: float = 0.0
    """Time of the whole process."""
    peak: int | None = None
    """Peak memory; None if the system does not report it."""
    curve: list[tuple[float, float]] = field(default_factory=list)
    """Time at which an adapter was written, and its held-out loss."""
    problem: str | None = None

    def reached(self, goal: float) -> float | None:
        """Return the time at which the loss was at most `goal`; None: never."""
        return next((seconds for seconds, loss in self.curve if loss <= goal), None)


@dataclass(frozen=True)
class PeftSettings:
    """The settings that the race searches for, to run PEFT at its best."""

    learning_rate: float = 1e-3
    batch_size: int = 4
    attention: str = "sdpa"


@dataclass(frozen=True)
class RaceResult:
    """All processes of a race."""

    goals: Mapping[int, float]
    """Seed -> the loss to reach."""
    runs: Sequence[ToolRun]
    best: PeftSettings

    def rows(self) -> list[list[str]]:
        """Return the cells of the table for each tool. The ratio is the median over the seeds."""
        return [self._row(tool) for tool in dict.fromkeys(run.tool for run in self.runs)]

    def _row(self, tool: str) -> list[str]:
        own = [run for run in self.runs if run.tool == tool]
        if problem := next((run.problem for run in own if run.problem), None):
            return [tool, problem, "–", "–", "–"]
        times, best = ([one.reached(self.goals[one.seed]) for one in some] for some in (own, self._of(BEST)))
        ratios = [theirs / ours for ours, theirs in zip(times, best, strict=True) if ours and theirs]
        peaks = [run.peak for run in own if run.peak]
        shown = [f"{time:.1f}" if time else f"not in {one.seconds:.0f}" for time, one in zip(times, own, strict=True)]
        return [
            tool,
            ", ".join(shown),
            f"{statistics.median(ratios):.2f}" if len(ratios) == len(own) else "–",
            ", ".join(f"{min(loss for _time, loss in run.curve):.4f}" for run in own),
            format_gigabytes(max(peaks)) if peaks else "–",
        ]

    def write(self, folder: Path, command: str) -> None:
        """Write all processes with their curves to `race.json`, and the table to `figures.json`."""
        make_folder(folder)
        write_json(folder / "race.json", asdict(self))
        Figures(HEADERS, self.rows(), command).write(folder / "figures.json")

    def _of(self, tool: str) -> list[ToolRun]:
        return [run for run in self.runs if run.tool == tool]


def run_race(
    model: str,
    data: Sequence[str],
    held_out: Sequence[str],
    seeds: int,
    show: Callable[[str], None],
    tools: Collection[str] = OTHERS,
) -> RaceResult:
    """Run the tools that are installed, for each seed; see the module docstring.

    `data` and `held_out` are texts, or prompts with completions, in a format that `train` reads. `show` is called with
    a line after each process. `tools` are those of `OTHERS` that run beside PEFT at its best.
    """
    if unknown := [tool for tool in tools if tool not in OTHERS]:
        raise TsugikiError(f"unknown tool {', '.join(map(repr, unknown))}; choose from {', '.join(OTHERS)}")
    if find_spec("peft") is None:
        raise TsugikiError(f"a race needs PEFT: {INSTALL}")
    with TemporaryDirectory() as folder:
        inputs, out = _prepare(model, data, held_out, Path(folder)), Path(folder, "out")

        def best(settings: PeftSettings, seed: int = 1) -> ToolRun:
            command = _peft(inputs, out, seed, passes=1, best=True, **asdict(settings))
            run = _run(BEST, seed, command, out, _KEEP_MEMORY, inputs, show)
            if run.problem:
                raise TsugikiError(f"{BEST} gives the loss to reach, and it failed: {run.problem}")
            return run

        settings, first = best_settings(best)
        runs = []
        for seed in range(1, seeds + 1):
            runs.append(first if seed == 1 else best(settings, seed))
            for tool, command in _others(inputs, out, seed).items():
                if tool in tools:
                    runs.append(_run(tool, seed, command, out, {}, inputs, show))
    goals = {run.seed: run.curve[-1][1] for run in runs if run.tool == BEST}
    return RaceResult(goals, runs, settings)


def best_settings(run: Callable[[PeftSettings], ToolRun]) -> tuple[PeftSettings, ToolRun]:
    """Search for the settings with the lowest loss at the end, and return them with their run.

    The learning rate is multiplied by three as long as the loss is lower, and then divided by three in the same way.
    Then one row in a step is tried with half of the rate. Of the two attention implementations, the faster one is used.
    """
    run, best = cache(run), PeftSettings()

    def is_better(other: PeftSettings) -> bool:
        return run(best).curve[-1][1] > run(other).curve[-1][1]

    for factor in (3, 1 / 3):
        while is_better(other := replace(best, learning_rate=float(f"{best.learning_rate * factor:.2g}"))):
            best = other
    if is_better(other := replace(best, batch_size=1, learning_rate=best.learning_rate / 2)):
        best = other
    best = min((best, replace(best, attention="eager")), key=lambda settings: run(settings).seconds)
    return best, run(best)


def _prepare(model: str, data: Sequence[str], held_out: Sequence[str], folder: Path) -> Inputs:
    """Write the base and the records in the formats that all tools read."""
    load_model(model).save_pretrained(folder / "model")
    load_tokenizer(model).save_pretrained(folder / "model")
    files = [folder / name / f"{name}.jsonl" for name in ("train", "held_out")]
    kinds = {
        kind for part, file in zip((data, held_out), files, strict=True) for kind in _write(read_records(part), file)
    }
    if kinds not in ({Document}, {Completion}):
        raise TsugikiError("a race needs texts alone, or prompts with completions alone, in --data and --held-out")
    return Inputs(folder / "model", files[0], files[1], kinds == {Document})


def _write(records: Iterable[Record], file: Path) -> set[type[Record]]:
    """Write texts, and prompts with completions, as JSON Lines; return the kinds of the records."""
    file.parent.mkdir()
    kinds = set()
    with file.open("w", encoding="utf-8") as lines:
        for record in records:
            kinds.add(type(record))
            if isinstance(record, Completion):
                fields = {"prompt": record.prompt, "completion": record.completion}
            elif isinstance(record, Document):
                fields = {"text": record.text}
            else:
                continue  # refused by its kind
            lines.write(json.dumps(fields, ensure_ascii=False) + "\n")
    return kinds


def _peft(inputs: Inputs, out: Path, seed: int, **settings: Any) -> list[str]:
    """Return the command of `peft_process` with these fields of its `Settings`."""
    fields = {"model": str(inputs.model), "data": str(inputs.data), "out": str(out), "seed": seed, **settings}
    return [sys.executable, "-P", "-m", "benchmarks.race.peft_process", json.dumps(fields)]


def _others(inputs: Inputs, out: Path, seed: int) -> dict[str, list[str]]:
    """Return the commands of the tools that race against PEFT at its best, as far as they are installed."""
    found = {"peft-documented": _peft(inputs, out, seed, passes=_PASSES, best=False)}
    if find_spec("trl") and (trl := shutil.which("trl")):
        has_bf16 = preferred_compute_dtype() == "bf16"  # TRL's default; a processor without it takes many times as long
        on_processor = not torch.accelerator.is_available()
        found["trl"] = [
            *(trl, "sft", "--model_name_or_path", str(inputs.model), "--dataset_name", str(inputs.data.parent)),
            *("--output_dir", str(out), "--seed", str(seed), "--num_train_epochs", str(_PASSES)),
            *("--learning_rate", "2e-4", "--use_peft", "true", "--lora_r", "32", "--lora_alpha", "16"),
            *("--max_length", "512"),  # as in the others; the default of 1,024 is more than the context of some bases
            *("--save_strategy", "steps", "--save_steps", "0.1", "--save_only_model", "true", "--report_to", "none"),
            *("--disable_tqdm", "true", "--bf16", str(has_bf16), "--use_cpu", str(on_processor)),
        ]
    template = () if inputs.has_texts else ("--chat-template", "none")
    found["tsugiki"] = [
        *(sys.executable, "-P", "-m", "tsugiki", "train", "--model", str(inputs.model), "--data", str(inputs.data)),
        *("--held-out", str(inputs.held_out), "--out", str(out), "--seed", str(seed), *template),
    ]
    return found


def _run(
    tool: str,
    seed: int,
    command: list[str],
    out: Path,
    environment: Mapping[str, str],
    inputs: Inputs,
    show: Callable[[str], None],
) -> ToolRun:
    """Run a tool to its end, and score the adapters that it wrote below `out`; the folder is removed."""
    run = ToolRun(tool, seed)
    with TemporaryDirectory() as folder, TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        copies: dict[tuple[Path, int], Path] = {}
        started = time.time()
        process = psutil.Popen(command, stdout=output, stderr=output, env={**child_environment(), **environment})
        running = True
        while running:
            running = process.poll() is None
            copy_new_adapters(out, Path(folder), copies)
            run.peak = max(run.peak or 0, _resident(process)) or None
            time.sleep(_POLL if running else 0)
        run.seconds = time.time() - started
        if process.returncode or not copies:
            output.seek(0)
            lines = [line for line in output.read().splitlines() if line.strip()] or [""]
            run.problem = f"exited with status {process.returncode}: {lines[-1].strip()[:100]}"
        else:
            losses = inputs.losses(list(copies.values()))
            run.curve = sorted((at / 1e9 - started, loss) for (_path, at), loss in zip(copies, losses, strict=True))
    shutil.rmtree(out, ignore_errors=True)
    last = run.problem or f"{run.curve[-1][1]:.4f}"
    show(f"{tool}, seed {seed}: {run.seconds:.0f} s, {last}")
    return run


def copy_new_adapters(out: Path, folder: Path, copies: dict[tuple[Path, int], Path]) -> None:
    """Copy the adapters below `out` that are complete and new; a copy is known by file and time in nanoseconds."""
    for place, folders, names in os.walk(out):  # which passes over folders that are removed meanwhile
        folders[:] = [folder for folder in folders if not folder.startswith(".")]  # unfinished checkpoints
        if not {ADAPTER_FILE, ADAPTER_CONFIG_FILE} <= {*names}:
            continue
        file = Path(place, ADAPTER_FILE)
        # The file may be removed meanwhile; `safe_open` raises a RuntimeError if it does not exist any more.
        with suppress(OSError, RuntimeError, SafetensorError):
            at = (file, file.stat().st_mtime_ns)
            if at in copies:
                continue
            with safe_open(file, "pt"):
                copy = folder / str(len(copies))
            copy.mkdir(exist_ok=True)
            for name in (ADAPTER_CONFIG_FILE, ADAPTER_FILE):  # an error if one has been removed meanwhile
                shutil.copy2(file.with_name(name), copy)
            copies[at] = copy


def _resident(process: psutil.Process) -> int:
    """Return the resident memory of a process and its children, in bytes."""
    total = 0
    with suppress(psutil.Error):
        for one in (process, *process.children(recursive=True)):
            total += one.memory_info().rss
    return total
