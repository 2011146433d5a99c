"""Measure the seconds from the start of a process until its adapter reaches a held-out loss, beside PEFT and TRL.

    python -m benchmarks.race --model embedded --seeds 3 --out race

The loss is that of PEFT at its best after one pass over the data (`benchmarks.race.race`). Without --data, the texts
are those of the quickstart. leaderboard.md in this folder has the results so far.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from benchmarks.models import SHAPES
from benchmarks.race.race import HEADERS, OTHERS, run_race
from tsugiki.errors import TsugikiError
from tsugiki.io.atomic import check_writable
from tsugiki.report.table import Table

_HELD_OUT = 4  # texts of the quickstart


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the race, print the table and write the result.

    Raises:
        TsugikiError: an option does not fit, or PEFT at its best failed.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="a base that was trained: 'embedded', a folder or a hub id")
    parser.add_argument("--data", action="append", default=[], help="training data; default: texts of the quickstart")
    parser.add_argument("--held-out", action="append", default=[], help="data for the held-out loss")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each tool")
    parser.add_argument("--entries", default=",".join(OTHERS), help="the tools that run beside PEFT at its best")
    parser.add_argument("--out", type=Path, help="folder for race.json and figures.json")
    given = parser.parse_args(arguments)
    if given.model in SHAPES:
        raise TsugikiError(f"{given.model} has random weights here; a race needs a base that was trained, or a folder")
    if bool(given.data) != bool(given.held_out):
        raise TsugikiError("a race needs both --data and --held-out, or neither for the texts of the quickstart")
    data, held_out = (given.data, given.held_out) if given.data else quickstart_texts()
    if given.out is not None:
        check_writable(given.out)
    tools = given.entries.split(",")
    result = run_race(given.model, data, held_out, given.seeds, lambda line: print(line, file=sys.stderr), tools)
    if given.out is not None:
        words = sys.argv[1:] if arguments is None else arguments
        result.write(given.out, shlex.join(["python", "-m", "benchmarks.race", *words]))
    print(Table(HEADERS["en"], result.rows()).to_markdown())
    best = result.best
    print(f"peft-best: learning rate {best.learning_rate:g}, rows {best.batch_size}, attention {best.attention}")


def quickstart_texts() -> tuple[list[str], list[str]]:
    """Return the texts of the quickstart to train on, and those that are held out."""
    folder = files("tsugiki") / "assets" / "quickstart"
    texts = sorted(str(file) for file in folder.iterdir() if file.name.endswith(".txt"))
    return texts[:-_HELD_OUT], texts[-_HELD_OUT:]


if __name__ == "__main__":
    try:
        main()
    except TsugikiError as error:
        sys.exit(str(error))
