"""The results of a benchmark: machine, versions, command, workload and the seconds of every step; table and plot."""

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.figures import computer, installed_versions, measured_commit
from benchmarks.speed.entries import BenchmarkEntry
from benchmarks.speed.runner import Measurement
from benchmarks.speed.workload import Workload
from tsugiki.io.atomic import make_folder, write_text
from tsugiki.io.formatting import format_gigabytes
from tsugiki.io.json import write_json
from tsugiki.report.html import FAINT, INK, PAPER, RULE, SERIES, svg_text
from tsugiki.report.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_WIDTH, _BAR, _FRAME = 7.0, 0.34, 1.0  # inches
_OURS, _THEIRS, _LIMIT = SERIES[0], SERIES[7], SERIES[4]
_ROOT = re.compile(r":root \{[^}]*\}|@media \(prefers-color-scheme: dark\) \{\s*:root \{[^}]*\}\s*\}")


@dataclass(frozen=True)
class EntryResult:
    """The figures of one entry, beside those of its `Measurement`. A figure is None if it was not measured."""

    name: str
    summary: str
    notes: Mapping[str, str]
    problem: str | None
    tokens_per_second: float | None
    """Median over the counted steps; of preference tuning, the number of pairs."""
    slowest: float | None
    fastest: float | None
    ratio: float | None
    """The speed divided by that of the first entry that was measured."""
    ratio_range: tuple[float, float] | None
    """The smallest and the largest ratio of the medians of two blocks in the same round; None with one round."""
    share: float | None
    """Share of the machine's limit for the entry's compute dtype, with attention counted whole."""
    loaded: int | None
    peak: int | None
    above_loaded: int | None
    blocks: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Results:
    """The results of one benchmark."""

    work: Mapping[str, Any]
    """The fields of the `Workload`."""
    rows: Sequence[EntryResult]
    limits: Mapping[str, Mapping[str, Any]]
    """The machine's limits by dtype; empty if not measured."""
    command: str
    machine: Mapping[str, Any]
    date: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())
    versions: Mapping[str, str] = field(default_factory=installed_versions)
    commit: str = field(default_factory=measured_commit)
    kind: str = "train"
    """preference: the steps are counted in pairs instead of tokens. Older files hold `generate` for generation."""
    format: int = 2

    @property
    def unit(self) -> str:
        """What the speeds count."""
        return "pairs" if self.kind == "preference" else "tokens"

    def write(self, folder: Path) -> None:
        """Write `results.json` atomically."""
        write_json(folder / "results.json", asdict(self))


def collect(
    workload: Workload,
    amount: int,
    entries: Mapping[str, BenchmarkEntry],
    measurements: Sequence[Measurement],
    limits: Mapping[str, Any],
    command: str,
    machine: dict[str, Any],
) -> Results:
    """Compute the figures of each measurement, in the given order; `amount`: the tokens or pairs of a step."""
    base = next((measurement for measurement in measurements if not measurement.problem), None)
    rows = [_entry_result(measurement, entries[measurement.name], amount, base, limits) for measurement in measurements]
    kind = "preference" if workload.prompt else "train"
    return Results(asdict(workload), rows, limits, command, machine, kind=kind)


def _entry_result(
    measurement: Measurement,
    entry: BenchmarkEntry,
    amount: int,
    base: Measurement | None,
    limits: Mapping[str, Mapping[str, Any]],
) -> EntryResult:
    speeds = [amount / seconds for seconds in measurement.seconds] if not measurement.problem else []
    median = amount / statistics.median(measurement.seconds) if speeds else None
    rounds = zip(base.blocks, measurement.blocks, strict=False) if median and base and measurement is not base else ()
    ratios = [statistics.median(theirs) / statistics.median(ours) for theirs, ours in rounds]
    limit = limits.get(entry.compute_dtype or measurement.notes.get("base_dtype", ""), {}).get("tokens_per_second")
    return EntryResult(
        name=measurement.name,
        summary=entry.summary,
        notes=measurement.notes,
        problem=measurement.problem,
        tokens_per_second=median,
        slowest=min(speeds, default=None),
        fastest=max(speeds, default=None),
        ratio=median * statistics.median(base.seconds) / amount if median and base else None,
        ratio_range=(min(ratios), max(ratios)) if len(ratios) > 1 else None,
        share=median / limit if median and limit and not entry.full else None,
        loaded=measurement.loaded,
        peak=measurement.peak,
        above_loaded=measurement.above_loaded,
        blocks=measurement.blocks,
    )


def results_table(results: Results) -> Table:
    """Return headers and cells: a row for each entry, then a row for each limit of the machine."""
    speed = "pairs/s" if results.unit == "pairs" else "tokens/s"
    headers = ["", speed, "slowest to fastest", "ratio"]
    headers += ["share of limit"] if results.limits else []
    headers += ["peak memory", "above the model"] if any(row.peak for row in results.rows) else []
    headers += ["settings"]
    rows = [_cells(row, speed) for row in results.rows]
    for dtype, limit in results.limits.items():
        causal = f"with causal attention: {_format_speed(limit['causal_tokens_per_second'])}"
        rows.append({"": f"limit, {dtype}", "tokens/s": _format_speed(limit["tokens_per_second"]), "settings": causal})
    return Table(headers, [[row.get(header, "–") for header in headers] for row in rows])


def comparison_table(sources: Sequence[Results]) -> Table:
    """Return a row for each LoRA of Tsugiki in several results of one kind, beside those of PEFT, or of TRL for pairs.

    At its best, a tool has the fastest of its entries in the dtype of the row, or of all if none has that dtype.
    """
    cells = [
        _beside(results, row)
        for results in sources
        for row in results.rows
        if "base_dtype" in row.notes and row.tokens_per_second
    ]
    return Table([*cells[0]], [[row.get(header, "–") for header in cells[0]] for row in cells])


def _beside(results: Results, ours: EntryResult) -> dict[str, str]:
    """Return the cells of an entry of Tsugiki by header."""
    work, dtype = results.work, ours.notes["base_dtype"]
    tool = "TRL" if results.kind == "preference" else "PEFT"
    measured = {row.name: row for row in results.rows if row.tokens_per_second}
    theirs = [row for name, row in measured.items() if name.startswith(f"{tool.lower()}-")]
    theirs = [row for row in theirs if row.name.startswith(f"peft-{dtype}")] or theirs
    best = max(theirs, key=lambda row: row.tokens_per_second or 0)
    documented = next(row for row in theirs if best.name.startswith(row.name))  # names of the others go on from it
    speeds = {f"{tool} as documented": documented, f"{tool} at its best": best}
    if results.kind == "preference":
        what = {"prompt + answer": f"{work['prompt']} + {work['length'] - work['prompt']}"}
        seconds = [row.notes.get("reference", "–").partition(" ")[0] for row in (best, ours)]
        note = {"reference, s a pair: TRL, Tsugiki": ", ".join(seconds)}
    else:
        what, note = {"model": work["model"]}, {"share of limit": f"{ours.share:.0%}" if ours.share else "–"}
        speeds |= {"TRL": measured["trl"]} if "trl" in measured else {}
    processor = results.machine.get("generation") or computer(results.machine)
    recomputed = ", --recompute blocks" if ours.name.endswith("-recompute") else ""
    ratio = (ours.tokens_per_second or 0) / (best.tokens_per_second or 1)
    rounds = [statistics.median(a) / statistics.median(b) for a, b in zip(best.blocks, ours.blocks, strict=True)]
    memory = [format_gigabytes(row.above_loaded or 0).removesuffix(" GB") for row in (best, ours)]
    return {
        "processor, dtype": f"{processor}, {dtype}{recomputed}",
        **what,
        **{header: _format_speed(row.tokens_per_second or 0) for header, row in {**speeds, "Tsugiki": ours}.items()},
        f"times {tool} at its best": f"{ratio:.2f} [{min(rounds):.2f}, {max(rounds):.2f}]",
        **note,
        f"GB: {tool}, Tsugiki": ", ".join(memory),
        "date": results.date,
    }


def results_lines(results: Results) -> list[str]:
    """Return two lines: the workload, the machine, the date and the versions; and the command."""
    work = results.work
    what = f"{work['model']}, {work['batch']} x {work['length']} tokens per step"
    if results.kind == "preference":
        answer = work["length"] - work["prompt"]
        what = f"{work['model']}, {work['batch']} pairs per step, {work['prompt']} tokens of prompt, {answer} of answer"
    versions = ", ".join(f"{name} {number}" for name, number in results.versions.items())
    return [f"{what}; {computer(results.machine)}; {results.date}; {versions}", results.command]


def results_page(results: Results) -> str:
    """Return the text of `table.md`."""
    return "\n".join([f"{line}\n" for line in results_lines(results)] + [results_table(results).to_markdown()])


def _cells(row: EntryResult, speed: str) -> dict[str, str]:
    """Return the cells of an entry by header, without figures that were not measured; `speed`: its header."""
    if row.problem:
        return {"": row.name, "settings": row.problem}
    cells = {"": row.name, "settings": ", ".join(f"{name} {value}" for name, value in row.notes.items()) or "–"}
    if row.tokens_per_second is not None and row.slowest is not None and row.fastest is not None:
        cells[speed] = _format_speed(row.tokens_per_second)
        cells["slowest to fastest"] = f"{_format_speed(row.slowest)} – {_format_speed(row.fastest)}"
    if row.ratio is not None:
        interval = "" if row.ratio_range is None else " [{:.2f}, {:.2f}]".format(*row.ratio_range)
        cells["ratio"] = f"{row.ratio:.2f}{interval}"
    if row.share is not None:
        cells["share of limit"] = f"{row.share:.0%}"
    if row.peak is not None:
        cells["peak memory"] = format_gigabytes(row.peak)
    if row.above_loaded is not None:
        cells["above the model"] = format_gigabytes(row.above_loaded)
    return cells


def _format_speed(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"


def write_results(results: Results, out: Path) -> None:
    """Write `results.json`, `table.md` and `plot.svg` to a folder."""
    make_folder(out)
    results.write(out)
    write_text(out / "table.md", results_page(results))
    write_text(out / "plot.svg", plot(results))


def plot(results: Results) -> str:
    """Return the plot as SVG: the speeds as bars, without entries that failed, and the limits as lines.

    The colours are the CSS variables of the report pages, so that the plot follows the viewer's light or dark theme.
    """
    from matplotlib.figure import Figure

    rows = [row for row in results.rows if row.tokens_per_second]
    speeds = [row.tokens_per_second or 0.0 for row in rows]
    limits = {dtype: limit["tokens_per_second"] for dtype, limit in results.limits.items()}
    figure = Figure(figsize=(_WIDTH, _FRAME + _BAR * max(1, len(rows))), layout="constrained", facecolor=PAPER)
    axes = figure.subplots()
    axes.set_facecolor(PAPER)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=RULE, linewidth=0.8)
    colours = [_OURS if row.name.startswith(("tsugiki", "grafted", "merged")) else _THEIRS for row in rows]
    axes.barh(range(len(rows)), speeds, height=0.62, color=colours)
    for place, (row, speed) in enumerate(zip(rows, speeds, strict=True)):
        spread = [speed - (row.slowest or speed)], [(row.fastest or speed) - speed]
        axes.errorbar([speed], [place], xerr=spread, color=INK, linewidth=1)
        axes.annotate(_format_speed(speed), (row.fastest or speed, place), (4, 0), color=INK, va="center", fontsize=9,
                      textcoords="offset points")  # fmt: skip
    for dtype, speed in limits.items():
        axes.axvline(speed, color=_LIMIT, linewidth=1.2, linestyle="--")
        axes.annotate(f"limit {dtype}", (speed, 1), (0, 3), color=_LIMIT, fontsize=8.5, ha="center",
                      xycoords=("data", "axes fraction"), textcoords="offset points")  # fmt: skip
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08 * max([*speeds, *limits.values(), 1.0]))
    axes.set_xlabel(f"{results.unit} per second", color=FAINT)
    axes.tick_params(length=0, colors=FAINT)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    return themed_svg(figure)


def themed_svg(figure: "Figure") -> str:
    """Return a figure that uses the colours of `report.plots` as a standalone SVG file."""
    style = "".join(_ROOT.findall((files("tsugiki.report") / "style.css").read_text(encoding="utf-8")))
    return svg_text(figure, "tsugiki", facecolor=PAPER).replace("<defs>", f"<style>{style}</style>\n<defs>", 1)
