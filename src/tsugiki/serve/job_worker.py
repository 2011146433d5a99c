"""The process that `serve.jobs` starts: it reads a function call from standard input and prints its result, as JSON.

It does not import what the server needs, such as torch, because a search among works needs none of it.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tsugiki.errors import TsugikiError, error_text, is_ordinary
from tsugiki.language import _

_ROWS = 3
_MOST_WORKS = 200  # works that are listed
_LONGEST_CELL = 300  # characters of a cell of a table that are shown


def look(data: str | list[str], columns: Mapping[str, str] = {}) -> dict[str, Any]:
    """Return what data are: their kind, the columns that are used, and the first rows of a table."""
    from tsugiki.data.read.recognise import recognise

    found = recognise(data, columns, _ROWS)
    rows = [{name: _cell(value) for name, value in row.items()} for row in found.rows]
    return {"kind": found.kind, "columns": found.columns, "rows": rows}


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST_CELL else f"{text[:_LONGEST_CELL]} …"


def preview(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the first rows of a run, counts and notes."""
    from tsugiki.report.preview import count_lines
    from tsugiki.training.run.preview import preview
    from tsugiki.training.settings.config import RunConfig

    shown = preview(RunConfig.model_validate(settings), _ROWS)
    return {
        "rows": [asdict(row) for row in shown.rows],
        "of": shown.counts.blocks,
        "tokens": shown.counts.block_size,
        "counts": count_lines(shown, verbose=False),
        "notes": shown.notes,
    }


def plan(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the plan of a run as lines and a table, and the settings of the option that was chosen."""
    from tsugiki.io.progress import ProgressDisplay
    from tsugiki.report.plan import plan_lines, plan_table
    from tsugiki.serve.folders import base_name
    from tsugiki.training.run.load import rows_of_data
    from tsugiki.training.run.plan import plan_run
    from tsugiki.training.settings.config import RunConfig

    config = RunConfig.model_validate(settings)
    planned = plan_run(config, *rows_of_data(config, ProgressDisplay()))
    planned = replace(planned, model=base_name(planned.model))
    headers, table = plan_table(planned)
    return {"lines": plan_lines(planned), "headers": headers, "rows": table, "fits": planned.options[0].fits}


def works(source: str, query: dict[str, Any]) -> dict[str, Any]:
    """Return the works of Aozora Bunko that match a query."""
    from tsugiki.data.read.aozora.index import Query, select
    from tsugiki.data.read.aozora.works import open_source

    found = select(open_source(source, None).entries(), Query(**query))
    shown = [
        {"title": entry.title or entry.path, "people": [person.name for person in entry.people if person.name]}
        for entry in found[:_MOST_WORKS]
    ]
    return {"count": len(found), "works": shown}


def fetch(source: str, query: dict[str, Any], out: str) -> dict[str, Any]:
    """Write the works that match a query as clean text, a JSON line each."""
    from tsugiki.data.read.aozora.index import Query, select
    from tsugiki.data.read.aozora.works import open_source, read_entries, write_works
    from tsugiki.io.atomic import check_new_file

    check_new_file(Path(out))
    opened, selection = open_source(source, None), Query(**query)
    skipped: list[str] = []
    entries = read_entries(opened, select(opened.entries(), selection), selection, skipped.append, skipped.append)
    totals = write_works(entries, Path(out))
    counts = {"works": totals.works, "characters": totals.characters, "skipped": len(skipped)}
    return {"file": Path(out).name, **counts}


FUNCTIONS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "look": look, "preview": preview, "plan": plan, "works": works, "fetch": fetch
}  # fmt: skip


def main() -> None:
    """Answer one call."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
    os.dup2(2, 1)  # libraries that print must not write into the answer
    with suppress(OSError):  # Linux: if memory runs out, this process is ended, and not the server
        Path("/proc/self/oom_score_adj").write_text("1000")
    call = json.loads(sys.stdin.readline())
    if hasattr(signal, "alarm"):  # in case the server was killed, which otherwise ends this process in time
        signal.alarm(int(call["seconds"]) + 10)
    try:
        result: dict[str, Any] = {"result": FUNCTIONS[call["function"]](**call["arguments"])}
    except TsugikiError as error:
        result = {"error": str(error)}
    except BaseException as error:
        if not is_ordinary(error):
            raise
        kind = type(error).__name__
        result = {"error": _("unexpected {kind}: {error}", kind=kind, error=error_text(error))}
    print(json.dumps(result, ensure_ascii=False), file=answers, flush=True)


if __name__ == "__main__":
    main()
