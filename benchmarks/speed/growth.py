"""How speed and memory grow with the model, the rows, the adapter and the threads, in Tsugiki and in PEFT.

    python -m benchmarks.speed.growth --out growth                          # everything
    python -m benchmarks.speed.growth --out growth --only rank,threads      # some panels
    python -m benchmarks.speed.growth --out growth --again                  # once more; the faster figure counts
    python -m benchmarks.speed.growth --out growth --seconds 0              # memory only

Each measurement is a process of its own, an entry of `benchmarks.speed`: PEFT and Trainer with glibc keeping freed
memory (`peft-bf16-malloc`, the fastest setting without compilation), and Tsugiki, both on the same rows of random
tokens and with the base in bfloat16. After one or two steps of warm-up, steps are counted until they have taken
`--seconds`.
Which attention implementation PEFT uses is tried with the first point of each row length; above 1,024 tokens it is
SDPA. A process gets no more memory than the machine has free; one that needs more is "out of memory".

The folder gets `points.json`, to which each measurement is added (those that succeeded are not repeated),
`figures.json`, the table, and the plots `growth.svg` and `growth.ja.svg`.
"""

import argparse
import resource
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from benchmarks.figures import Figures
from benchmarks.models import read_model_config
from benchmarks.speed.entries import TRAINING_ENTRIES, BenchmarkEntry
from benchmarks.speed.growth_plot import Line, Panel, plot
from benchmarks.speed.runner import KILLED, EntryFailed, EntryProcess
from benchmarks.speed.worker import OUT_OF_MEMORY
from benchmarks.speed.workload import WARM_UP, Workload
from tsugiki.errors import TsugikiError
from tsugiki.io.atomic import check_writable, make_folder, write_text
from tsugiki.io.formatting import format_gigabytes
from tsugiki.io.json import read_json, write_json
from tsugiki.model.meta import meta_model
from tsugiki.training.tools import memory

TOOLS: Mapping[str, BenchmarkEntry] = {
    "PEFT": TRAINING_ENTRIES["peft-bf16-malloc"],
    "Tsugiki": TRAINING_ENTRIES["tsugiki-bf16"],
}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
HEADERS = {
    "en": [
        *("model", "rows", "r", "layers", "threads", "tokens/s", "PEFT", "ratio"),
        *("peak memory", "PEFT", "ratio"),
    ],
    "ja": [
        *("モデル", "行", "r", "対象の層", "スレッド", "トークン/秒", "PEFT", "比"),
        *("最大メモリ", "PEFT", "比"),
    ],
}
_TRIED = 1024  # tokens of the longest row for which PEFT tries eager attention
_SLOW = 10.0  # seconds of a first step after which there is no second one of warm-up
_MOST = 8  # counted steps
_RESERVE = 500_000_000  # bytes that are left to other programs


@dataclass(frozen=True)
class Point:
    """What is trained, by both tools."""

    model: str = "smollm2-135m"
    batch: int = 2
    length: int = 512
    r: int = 8
    target_modules: tuple[str, ...] = ()
    """Empty: all seven projections of a block (of the embedded GPT-2: all three layers)."""
    threads: int = 2


@dataclass(frozen=True)
class Measured:
    """A point measured with a tool."""

    point: Point
    tool: str
    attention: str | None = None
    """The implementation that PEFT used."""
    seconds: list[float] = field(default_factory=list)
    """Of the counted steps."""
    loaded: int | None = None
    """Memory before the first step, in bytes."""
    peak: int | None = None
    """Peak memory, in bytes."""
    problem: str | None = None
    """Why there are no figures."""

    @property
    def speed(self) -> float | None:
        """Tokens per second of the median step."""
        if self.problem or not self.seconds:
            return None
        return self.point.batch * self.point.length / statistics.median(self.seconds)


Found: TypeAlias = dict[tuple[Point, str], Measured]

PANELS: Mapping[str, Sequence[Point]] = {
    "model": [
        Point(model=name) for name in ("smollm2-135m", "embedded", "qwen2.5-0.5b", "tinyllama-1.1b", "qwen3-1.7b")
    ],
    "row-length": [Point(batch=1, length=length) for length in (256, 512, 1024, 2048, 4096, 8192)],
    "rank": [Point(r=r) for r in (1, 8, 32, 128, 256)],
    "targets": [Point(target_modules=names) for names in (("q_proj",), ("q_proj", "v_proj"), ATTENTION)] + [Point()],
    "threads": [Point(threads=threads) for threads in (1, 2)],
}
"""The points of each panel; those of the first ones are not measured again."""


def main() -> None:
    """Measure, and write the table and the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--only", default=",".join(PANELS), help=f"panels to measure, from {', '.join(PANELS)}")
    parser.add_argument("--seconds", type=float, default=10, help="of the counted steps; 0: memory only")
    parser.add_argument(
        "--attention", choices=["eager", "sdpa"], help="of PEFT for rows of up to 1,024 tokens; default: the faster one"
    )
    parser.add_argument("--again", action="store_true", help="also what is in the folder; the faster figure counts")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := [name for name in names if name not in PANELS]:
        parser.error(f"unknown panel {', '.join(unknown)}; choose from {', '.join(PANELS)}")
    check_writable(options.out)
    make_folder(options.out)
    found = _read(options.out / "points.json")
    for point in dict.fromkeys(point for name in names for point in PANELS[name]):
        for tool in TOOLS:
            before = found.get((point, tool))
            if before is None or before.problem or options.again:
                print(f"{tool}: {point}", file=sys.stderr, flush=True)
                new = _measure(point, tool, _attention(point, found, options.attention), options.seconds)
                found[point, tool] = new if before is None or before.problem else _faster(before, new)
                write_json(options.out / "points.json", {"points": [asdict(one) for one in found.values()]})
    command = f"python -m benchmarks.speed.growth {shlex.join(sys.argv[1:])}"
    figures = Figures(HEADERS, _rows(found), command)
    figures.write(options.out / "figures.json")
    panels = _panels(found)
    write_text(options.out / "growth.svg", plot(panels, "en"))
    write_text(options.out / "growth.ja.svg", plot(panels, "ja"))
    print(figures.table("en").to_markdown())


def _faster(one: Measured, other: Measured) -> Measured:
    """Return the measurement with more tokens per second: other programs can only make a tool slower."""
    return other if (other.speed or 0.0) > (one.speed or 0.0) else one


def _read(file: Path) -> Found:
    if not file.exists():
        return {}
    found = {}
    for values in read_json(file)["points"]:
        fields = values["point"] | {"target_modules": tuple(values["point"]["target_modules"])}
        one = Measured(**values | {"point": Point(**fields)})
        found[one.point, one.tool] = one
    return found


def _attention(point: Point, found: Found, given: str | None) -> str | None:
    """Return the implementation that PEFT uses at this point; None if it is to be tried."""
    if point.length > _TRIED:
        return "sdpa"
    if given:
        return given
    tried = (one for (other, _), one in found.items() if (other.batch, other.length) == (point.batch, point.length))
    return next((one.attention for one in tried if one.attention), None)


def _measure(point: Point, tool: str, attention: str | None, seconds: float) -> Measured:
    """Let a process train; what fails is the `problem`."""
    entry = TOOLS[tool]
    if tool == "PEFT" and attention:
        entry = replace(entry, function=f"{entry.function}_{attention}")
    entry = replace(entry, environment={**entry.environment, "OMP_NUM_THREADS": str(point.threads)})
    workload = Workload(point.model, point.batch, point.length, r=point.r, target_modules=point.target_modules)
    peak, counted = 0, list[float]()
    try:
        with _limited_memory():
            process = EntryProcess(tool, entry, workload)
        try:
            for _turn in range(WARM_UP):
                step = process.step()
                if step["seconds"] > _SLOW:
                    break
            while not counted or (sum(counted) < seconds and len(counted) < _MOST):
                step = process.step()
                counted.append(step["seconds"])
                peak = max(peak, step["peak"])
        finally:
            process.close()
    except EntryFailed as failure:
        return Measured(point, tool, problem=_problem(str(failure)))
    return Measured(point, tool, process.notes.get("attention"), counted if seconds else [], process.loaded, peak)


@contextmanager
def _limited_memory() -> Iterator[None]:
    """Let processes that start within the block have the memory that is free now, and not that of other programs."""
    free = memory.available()
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if free is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (max(0, free - _RESERVE), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _problem(text: str) -> str:
    return OUT_OF_MEMORY if text.startswith(OUT_OF_MEMORY) or text == KILLED else text


def _rows(found: Found) -> list[list[str]]:
    """Return a row for each point that both tools have measured."""
    rows = []
    for point in dict.fromkeys(point for points in PANELS.values() for point in points):
        ours, peft = (found.get((point, tool)) for tool in ("Tsugiki", "PEFT"))
        if ours and peft:
            rows.append(
                [
                    point.model,
                    f"{point.batch} x {point.length:,}",
                    str(point.r),
                    _layers(point),
                    str(point.threads),
                    *_compared(ours, peft, ours.speed, peft.speed, "{:,.0f}".format),
                    *_compared(ours, peft, ours.peak, peft.peak, format_gigabytes),
                ]
            )
    return rows


def _layers(point: Point) -> str:
    """Return the names of the target layers, without their ending."""
    return ", ".join(name.removesuffix("_proj") for name in point.target_modules) or "all"


def _compared(
    ours: Measured, peft: Measured, our_value: float | None, peft_value: float | None, text: Callable[[float], str]
) -> list[str]:
    """Return the cells of both tools, and Tsugiki's relative to PEFT's."""
    cells = [
        one.problem or "–" if value is None else text(value) for one, value in ((ours, our_value), (peft, peft_value))
    ]
    return [*cells, f"{our_value / peft_value:.2f}" if our_value and peft_value else "–"]


def _panels(found: Found) -> list[Panel]:
    """Return what is drawn: the points of each panel that were measured."""
    panels = []
    for name, points in PANELS.items():
        lines = []
        for tool in TOOLS:
            places = ((_x(name, point), found[point, tool]) for point in points if (point, tool) in found)
            measured = sorted(places, key=lambda place: place[0])
            lines.append(
                Line(
                    tool,
                    speeds=[(x, one.speed) for x, one in measured if one.speed],
                    gigabytes=[(x, one.peak / 1e9) for x, one in measured if one.peak],
                    out_of_memory=[x for x, one in measured if one.problem == OUT_OF_MEMORY],
                )
            )
        panels.append(Panel(name, lines))
    return [panel for panel in panels if any(line.gigabytes for line in panel.lines)]


def _x(panel: str, point: Point) -> float:
    """Return the place of a point on the x axis of a panel."""
    match panel:
        case "model":
            weights = meta_model(read_model_config(point.model)).parameters()
            return sum(int(weight.numel()) for weight in weights)
        case "row-length":
            return point.length
        case "rank":
            return point.r
        case "targets":
            return len(point.target_modules or ALL)
        case _:
            return point.threads


if __name__ == "__main__":
    try:
        main()
    except TsugikiError as error:
        sys.exit(str(error))
