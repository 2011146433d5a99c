"""What a run learns from questions: right answers to other wordings, steps and processor seconds.

    python -m benchmarks.quality.questions facts_ja_20 --model embedded --settings '{"max_steps": 60}' --out FILE

The sets are those of `benchmarks.quality.question_sets`. With each set and seed, a run trains with the settings (those
of `RunConfig`; none: the defaults), and its adapter answers the questions of the set. Each result is a line of JSON in
`--out`. The seconds are those of all threads of the process, for training alone. `general` are the right answers to the
general questions of the run, before and after it, and `other` those to `GENERAL` after it.
"""

import argparse
import json
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.quality.question_sets import FAR, GENERAL, NEAR, Row, question_set, to_jsonl
from tsugiki.io.progress import ProgressDisplay
from tsugiki.training.run.stages import train
from tsugiki.training.score.questions import Question, right_answers
from tsugiki.training.score.targets import EvaluationTarget, answer_with_targets, loaded_targets
from tsugiki.training.settings.config import RunConfig
from tsugiki.training.settings.files import validated

ANSWER = 60
"""Tokens, more than any answer has."""


def main() -> None:
    """Train and ask for each set and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON")
    parser.add_argument("--seeds", type=int, nargs="*", default=[42])
    parser.add_argument("--out", type=Path, required=True, help="file to which results are added")
    options = parser.parse_args()
    for name in options.sets:
        for seed in options.seeds:
            result = learn(name, {"model": options.model, **options.settings, "seed": seed})
            result = {"set": name, "seed": seed, "settings": options.settings} | result
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result, ensure_ascii=False) + "\n")
            print(
                {key: value for key, value in result.items() if key not in ("settings", "chosen", "looks", "answers")}
            )


def learn(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a run has learned from a set."""
    questions, folder = question_set(name), Path(tempfile.mkdtemp(prefix="questions"))
    data = folder / "learned.jsonl"
    data.write_text(to_jsonl(questions.learned), "utf-8")
    started = time.process_time()
    record = train(validated(RunConfig, {**settings, "data": str(data), "out": str(folder / "run")}, None))
    seconds = time.process_time() - started
    answers = ask(str(settings["model"]), folder / "run", questions.asked)
    general = [{"prompt": question, "completion": ""} for question, _expected in GENERAL]
    found = ask(str(settings["model"]), folder / "run", general) if record.general_answers else []
    shutil.rmtree(folder)
    assert record.training is not None
    own = record.answers[-1] if record.answers else None
    return {
        **{wording: count(questions.asked, answers, wording) for wording in (NEAR, FAR)},
        "own": [own.correct, own.questions] if own else None,
        "general": [one.correct for one in record.general_answers],
        "other": sum(re.search(right, text) is not None for (_asked, right), text in zip(GENERAL, found, strict=False)),
        "steps": record.training.steps,
        "kept": record.kept_step,
        "strength": record.strength,
        "seconds": round(seconds, 1),
        "chosen": record.resolved_settings,
        "looks": [[look.step, round(look.loss, 4)] for look in record.validations],
        "answers": answers,
    }


def ask(model: str, adapter: Path | None, asked: list[Row]) -> list[str]:
    """Return the answers of a model, with an adapter or without one."""
    questions = [Question(row["prompt"], row["prompt"], "exact", (row["completion"],)) for row in asked]
    target = EvaluationTarget(model, adapter, "" if adapter is None else str(adapter))
    [answers] = answer_with_targets(loaded_targets([target]), questions, ANSWER, ProgressDisplay())
    return [given.answer.strip() for given in answers.answers]


def count(asked: list[Row], answers: list[str], wording: str) -> list[int]:
    """Return how many of the questions of a wording are answered rightly, and how many there are."""
    own = [(row, answer) for row, answer in zip(asked, answers, strict=True) if row["wording"] == wording]
    if all("key" in row for row, _answer in own):
        right = right_answers([answer for _row, answer in own], [[row["key"]] for row, _answer in own])
    else:
        right = [answer == row["completion"] for row, answer in own]
    return [sum(right), len(own)]


if __name__ == "__main__":
    main()
