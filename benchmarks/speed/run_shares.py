"""What a run's processor time goes into, from the start of its process to the end.

`python -m benchmarks.speed.run_shares -- train --model embedded --data mine.txt` runs the command several times, and
prints the processor seconds of each part (medians) and its share of the whole. A part does not count the parts inside
it: the steps, for example, do not count the evaluations between them. OMP_NUM_THREADS=1 makes the figures most alike.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_REPORT = "RUN_SHARES"
"""The environment variable that names the file into which an instrumented process writes its figures."""
_FUNCTIONS = {
    "tsugiki.training.run.load.read_data": "read: data and tokens",
    "tsugiki.training.run.load.load_run_tokenizer": "read: tokenizer",
    "tsugiki.training.run.load.pack_data": "read: pack rows",
    "tsugiki.training.run.load.load_model": "load the base",
    "tsugiki.training.run.load.return_freed_memory": "load the base: return freed memory",
    "tsugiki.training.run.start.start_accelerator": "prepare: accelerator",
    "tsugiki.training.run.prepare.predict_sample": "prepare: the base's predictions on a sample",
    "tsugiki.training.run.prepare.make_trainable": "prepare: adapter and fast paths",
    "tsugiki.training.run.stages.describe": "prepare: description for the record",
    "tsugiki.training.run.train_steps.loop_of": "prepare: loop",
    "tsugiki.training.run.train_steps._save_checkpoint": "save: checkpoints",
    "tsugiki.training.run.stages.save_trained": "save: adapter",
    "tsugiki.training.record.run_record.RunRecord.write": "save: record",
    "tsugiki.training.step.loop.TrainingLoop.train_step": "steps",
    "tsugiki.training.run.evaluation_callback.generate_texts": "look: samples",
    "tsugiki.training.run.scores.RunScores.evaluate": "look: held-out text",
    "tsugiki.training.run.scores.RunScores.validate": "look: validation text",
    "tsugiki.cli.train._show": "end: report and summary",
}
"""Functions, by module and name, and the parts of a run that they are. The first step is a part of its own."""


def main() -> None:
    """Measure a command in several rounds, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("command", nargs="+", help="a command of Tsugiki that trains, without --out")
    options = parser.parse_args()
    if _REPORT in os.environ:
        _run_instrumented(options.command)
        return
    from tsugiki.report.table import Table

    found: dict[str, list[float]] = defaultdict(list)
    with TemporaryDirectory() as folder:
        for number in range(options.rounds):
            out, report = Path(folder) / str(number), Path(folder) / f"{number}.json"
            before = _seconds_of_children()
            command = [sys.executable, "-m", "benchmarks.speed.run_shares", "--", *options.command, "--out", str(out)]
            subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, _REPORT: str(report)})
            whole, parts = _seconds_of_children() - before, json.loads(report.read_text())
            first = parts.pop("until the first step is done")
            for part, seconds in {**parts, "end: exit": whole - sum(parts.values())}.items():
                found[part].append(seconds)
            found["whole"].append(whole)
            found["until the first step is done"].append(first)
    medians = {part: statistics.median(seconds) for part, seconds in found.items()}
    rows = [[part, f"{seconds:.2f}", f"{seconds / medians['whole']:.1%}"] for part, seconds in medians.items()]
    print(Table(["part", "processor seconds", "share"], rows).to_markdown())


def _seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class _Clock:
    """Adds up the processor time of nested parts; time in an inner part does not count for the outer one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._parts, self._since = ["start: Python and command line"], 0.0

    def _count(self) -> None:
        now = time.process_time()
        self.seconds[self._parts[-1]] += now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._count()
        self._parts.append(name)
        try:
            yield
        finally:
            self._count()
            self._parts.pop()

    def rename_rest(self, name: str) -> None:
        """Count what is in no part under this name from now on."""
        self._count()
        self._parts[0] = name

    def report(self) -> dict[str, float]:
        self._count()
        return dict(self.seconds)


def _run_instrumented(command: list[str]) -> None:
    """Run a command of Tsugiki in this process, and write the seconds of its parts."""
    from tsugiki.cli import main as command_line
    from tsugiki.cli import train

    clock, until_first = _Clock(), 0.0
    import_libraries = vars(train)["import_libraries"]

    def counted(name: str, part: str) -> None:
        place, _, attribute = name.rpartition(".")
        try:
            owner: Any = import_module(place)
        except ModuleNotFoundError:  # a method
            place, _, kind = place.rpartition(".")
            owner = getattr(import_module(place), kind)
        inner = getattr(owner, attribute)

        @wraps(inner)
        def outer(*arguments: Any, **named: Any) -> Any:
            nonlocal until_first
            is_first = part == "steps" and not until_first
            with clock.part("first step" if is_first else part):
                result = inner(*arguments, **named)
            if is_first:
                until_first = time.process_time()
            return result

        setattr(owner, attribute, outer)

    def import_and_count(*names: str) -> None:
        with clock.part("start: imports"):
            import_libraries(*names)
        clock.rename_rest("other")
        for name, part in _FUNCTIONS.items():
            counted(name, part)

    vars(train)["import_libraries"] = import_and_count
    sys.argv = ["tsugiki", *command]
    try:
        command_line.main()
    finally:
        seconds = {**clock.report(), "until the first step is done": until_first}
        Path(os.environ[_REPORT]).write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()
