"""The table of a measurement: for the terminal, for `table.md`, and for the guides.

A guide has its tables between two lines, and nobody types what stands there:

    <!-- figures: ../benchmarks/results/gpt2-small.json -->
    <!-- end of figures -->

`python -m tsugiki.bench.table docs/benchmarks.md docs/benchmarks.ja.md` writes them anew from the files named.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from tsugiki.adapters.format import read_json
from tsugiki.bench.figures import KIND, Figures
from tsugiki.bench.results import Results, Row, read_results
from tsugiki.errors import TsugikiError
from tsugiki.report.formatting import Table

Language: TypeAlias = Literal["en", "ja"]

_PLACE = re.compile(r"(<!-- figures: (\S+) -->\n)(.*?)(<!-- end of figures -->)", re.DOTALL)
_HEADERS: Mapping[Language, Mapping[str, str]] = {
    "en": {
        "name": "",
        "speed": "tokens/s",
        "spread": "slowest to fastest",
        "ratio": "ratio",
        "share": "of the limit",
        "peak": "peak memory",
        "above": "above the model",
        "notes": "set up as",
    },
    "ja": {
        "name": "",
        "speed": "トークン/秒",
        "spread": "最低〜最高",
        "ratio": "比",
        "share": "限界に対して",
        "peak": "最大メモリー",
        "above": "モデル以外",
        "notes": "設定",
    },
}
_LIMIT = {"en": "limit, {dtype}", "ja": "限界（{dtype}）"}
_CAUSAL = {"en": "causal half alone: {speed}", "ja": "因果部分だけなら {speed}"}
_NOTHING = "–"


def results_table(results: Results, language: Language = "en") -> Table:
    """Headers and cells: a row for each contender, then one for each limit."""
    share, memory = bool(results.limits), any(row.peak for row in results.rows)
    columns = ["name", "speed", "spread", "ratio", *(["share"] if share else [])]
    columns += [*(["peak", "above"] if memory else []), "notes"]
    lines = [_cells(row) for row in results.rows]
    for dtype, limit in results.limits.items():
        causal = _CAUSAL[language].format(speed=_whole(limit["causal_tokens_per_second"]))
        speed = _whole(limit["tokens_per_second"])
        lines.append({"name": _LIMIT[language].format(dtype=dtype), "speed": speed, "notes": causal})
    headers = [_HEADERS[language][column] for column in columns]
    return headers, [[line.get(column, _NOTHING) for column in columns] for line in lines]


def results_lines(results: Results) -> list[str]:
    """What a reader has to know of the figures, a sentence each."""
    work, machine = results.work, results.machine
    what = f"{work['model']}, {work['batch']} x {work['length']} tokens a step"
    if results.kind == "generate":
        what = f"{work['model']}, from {work['length']} tokens, greedy, with a cache"
    versions = ", ".join(f"{name} {number}" for name, number in results.versions.items())
    return [
        f"{what}; {machine['processor']}, {machine['threads']} threads; {results.date}; {versions}",
        f"{results.command}",
    ]


def markdown(table: Table) -> str:
    """A table as GitHub has it: the first column to the left, the last too, figures to the right."""
    headers, rows = table
    rule = ["---", *["---:"] * (len(headers) - 2), "---"]
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in [headers, rule, *rows]
    )


def page(results: Results) -> str:
    """`table.md`."""
    return "\n".join([f"{line}\n" for line in results_lines(results)] + [markdown(results_table(results))])


def fill_template(text: str, folder: Path, language: Language) -> str:
    """A guide with its tables as the files have them.

    Args:
        text: of the guide.
        folder: that the guide lies in; files are named from there.
        language: of the headers.

    Raises:
        TsugikiError: a file that is not there, or that holds no results.
    """
    return _PLACE.sub(lambda place: f"{place[1]}{_figures(folder / place[2], language)}{place[4]}", text)


def _figures(file: Path, language: Language) -> str:
    given = read_json(file, missing=f"no figures at {file}")
    source = Figures(**given) if given.get("kind") == KIND else read_results(file)
    table = source.table(language) if isinstance(source, Figures) else results_table(source, language)
    machine = f"{source.machine['processor']}, {source.machine['threads']} threads, {source.date}"
    return f"\n{markdown(table)}\n`{source.command}` · {machine}\n\n"


def _cells(row: Row) -> dict[str, str]:
    cells = {"name": row.name, "notes": row.problem or _notes(row)}
    if row.tokens_per_second is not None and row.slowest is not None and row.fastest is not None:
        cells |= {"speed": _whole(row.tokens_per_second), "spread": f"{_whole(row.slowest)} – {_whole(row.fastest)}"}
    if row.ratio is not None:
        cells["ratio"] = f"{row.ratio:.2f}"
    if row.share is not None:
        cells["share"] = f"{row.share:.0%}"
    if row.peak is not None and not row.problem:
        cells["peak"] = f"{row.peak / 1e9:.2f} GB"
    if row.above_loaded is not None and not row.problem:
        cells["above"] = f"{row.above_loaded / 1e9:.2f} GB"
    return cells


def _notes(row: Row) -> str:
    return ", ".join(f"{name} {value}" for name, value in row.notes.items()) or _NOTHING


def _whole(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def main(*guides: str) -> None:
    """Write the tables of these guides anew; a name that ends in `.ja.md` is Japanese."""
    for guide in guides:
        file = Path(guide)
        text = file.read_text(encoding="utf-8")
        file.write_text(fill_template(text, file.parent, guide_language(file)), encoding="utf-8")


def guide_language(file: Path) -> Language:
    """Of a guide, by its name."""
    return "ja" if file.name.endswith(".ja.md") else "en"


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except TsugikiError as error:
        sys.exit(str(error))
