"""Write the tables of the guides from the committed results, so that no figure in them is typed by hand.

    python -m benchmarks.guide_tables docs/benchmarks.md docs/benchmarks.ja.md

In a guide, a table is between two comments, of which the first names its file:

    <!-- figures: ../benchmarks/results/gpt2-small.json -->
    <!-- end of figures -->

The file holds the results of `benchmarks.speed`, or `Figures`.
"""

import re
import sys
from pathlib import Path
from typing import Literal, TypeAlias

from benchmarks.figures import KIND, Figures, computer
from benchmarks.speed.results import EntryResult, Results, results_table
from tsugiki.errors import TsugikiError
from tsugiki.io.json import read_json
from tsugiki.report.table import Table

Language: TypeAlias = Literal["en", "ja"]

_JAPANESE = {
    "": "",
    "tokens/s": "トークン/秒",
    "pairs/s": "組/秒",
    "slowest to fastest": "最低〜最高",
    "ratio": "比",
    "share of limit": "限界比",
    "peak memory": "最大メモリ",
    "above the model": "モデル以外",
    "settings": "設定",
}
_TABLE = re.compile(r"(<!-- figures: (\S+) -->\n)(.*?)(<!-- end of figures -->)", re.DOTALL)


def fill_guide(text: str, folder: Path, language: Language) -> str:
    """Return the text of a guide with its tables regenerated.

    Args:
        text: the guide's text.
        folder: the guide's folder; the names of the files are relative to it.
        language: the language of the headers.

    Raises:
        TsugikiError: a file is missing or does not hold results.
    """
    return _TABLE.sub(lambda match: f"{match[1]}{_markdown(folder / match[2], language)}{match[4]}", text)


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


def _markdown(file: Path, language: Language) -> str:
    values = read_json(file, missing=f"no figures at {file}")
    source = Figures(**values) if values.get("kind") == KIND else read_results(file)
    remark = ""
    if isinstance(source, Figures):
        table, remark = source.table(language), source.remark.get(language, "")
    else:
        table = results_table(source) if language == "en" else _in_japanese(results_table(source))
    where = f"{computer(source.machine)}, {source.date}, {source.commit[:8]}"
    if language == "ja":
        where = re.sub(r", (\d+) threads, ", r"、\1 スレッド、", where)
    return f"\n{table.to_markdown()}\n`{source.command}`{remark} · {where}\n\n"


def _in_japanese(table: Table) -> Table:
    """Translate the headers of a table of results, and its rows of the machine's limit."""
    headers, rows = table
    return Table(
        [_JAPANESE[header] for header in headers],
        [
            [
                re.sub(r"^limit, (\w+)$", r"限界（\1）", name),
                *figures,
                note.replace("with causal attention", "因果的アテンションのみ"),
            ]
            for name, *figures, note in rows
        ],
    )


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except TsugikiError as error:
        sys.exit(str(error))
