"""Write the tables of the guides from the committed results, so that no figure in them is typed by hand.

    python -m benchmarks.guide_tables docs/benchmarks.md docs/benchmarks.ja.md

In a guide, a table is between two comments, of which the first names its files:

    <!-- figures: ../benchmarks/results/zen5/gpt2-small.json ../benchmarks/results/zen5/embedded.json -->
    <!-- end of figures -->

They hold results of `benchmarks.speed`, which share a table, or it is one file with `Figures`.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from benchmarks.figures import KIND, Figures, computer
from benchmarks.speed.results import EntryResult, Results, comparison_table
from tsugiki.errors import TsugikiError
from tsugiki.io.json import read_json
from tsugiki.report.table import Table

Language: TypeAlias = Literal["en", "ja"]

_JAPANESE = {
    "processor, dtype": "CPU、データ型",
    "model": "モデル",
    "prompt + answer": "プロンプト + 応答",
    "PEFT as documented": "PEFT（文書どおり）",
    "PEFT at its best": "PEFT（最速の設定）",
    "TRL as documented": "TRL（文書どおり）",
    "TRL at its best": "TRL（最速の設定）",
    "TRL": "TRL",
    "Tsugiki": "Tsugiki",
    "times PEFT at its best": "最速の PEFT との比",
    "times TRL at its best": "最速の TRL との比",
    "share of limit": "限界比",
    "reference, s a pair: TRL, Tsugiki": "参照（秒/組）：TRL、Tsugiki",
    "GB: PEFT, Tsugiki": "GB：PEFT、Tsugiki",
    "GB: TRL, Tsugiki": "GB：TRL、Tsugiki",
    "date": "日付",
}
_TABLE = re.compile(r"(<!-- figures: (.+) -->\n)((?s:.*?))(<!-- end of figures -->)")


def fill_guide(text: str, folder: Path, language: Language) -> str:
    """Return the text of a guide with its tables regenerated.

    Args:
        text: the guide's text.
        folder: the guide's folder; the names of the files are relative to it.
        language: the language of the headers.

    Raises:
        TsugikiError: a file is missing or does not hold results.
    """

    def table(match: re.Match[str]) -> str:
        return f"{match[1]}{_markdown([folder / name for name in match[2].split()], language)}{match[4]}"

    return _TABLE.sub(table, text)


def guide_language(file: Path) -> Language:
    """Return the language of a guide; files that end in `.ja.md` are in Japanese."""
    return "ja" if file.name.endswith(".ja.md") else "en"


def read_results(file: Path) -> Results:
    """Read the results of `benchmarks.speed`.

    Raises:
        TsugikiError: the file is missing or does not hold results.
    """
    values = read_json(file, missing=f"no results at {file}")
    try:
        return Results(**{**values, "rows": [EntryResult(**row) for row in values["rows"]]})
    except (KeyError, TypeError) as error:
        raise TsugikiError(f"{file} does not hold results of this version: {error}") from error


def main(*guides: str) -> None:
    """Regenerate the tables of these guides."""
    for guide in guides:
        file = Path(guide)
        text = file.read_text(encoding="utf-8")
        file.write_text(fill_guide(text, file.parent, guide_language(file)), encoding="utf-8")


def _markdown(files: Sequence[Path], language: Language) -> str:
    values = read_json(files[0], missing=f"no figures at {files[0]}")
    if values.get("kind") == KIND:
        figures = Figures(**values)
        table, remark = figures.table(language), figures.remark.get(language, "")
        return f"\n{table.to_markdown()}\n{_origin(figures, language, remark)}\n\n"
    sources = [read_results(file) for file in files]
    headers, rows = comparison_table(sources)
    table = Table(headers if language == "en" else [_JAPANESE[header] for header in headers], rows)
    lines = [f"- {_origin(source, language)}" for source in sources]
    return "\n".join(["", table.to_markdown(), *lines, "", ""])


def _origin(source: Figures | Results, language: Language, remark: str = "") -> str:
    """Return command, machine, date and commit."""
    where = f"{computer(source.machine)}, {source.date}, {source.commit[:8]}"
    if language == "ja":
        where = re.sub(r"(?: \((.+?)\))?, (\d+) threads?", r"（\1）、\2 スレッド", where).replace("（）", "")
        where = where.replace("without C functions", "C の関数なし").replace(", ", "、")
    return f"`{source.command}`{remark} · {where}"


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except TsugikiError as error:
        sys.exit(str(error))
