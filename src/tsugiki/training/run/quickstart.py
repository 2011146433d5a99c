"""The quickstarts: the embedded model learns the orthography of old laws and telegrams, or a chat model twenty facts.

The facts are those of an invented place, in `assets/questions`: each with five phrasings of its question that are
learned, and one that is not. With the phrasings that are not learned, right answers are counted before and after.
"""

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from tsugiki.base.resolve import EMBEDDED
from tsugiki.io.progress import ProgressDisplay
from tsugiki.language import language
from tsugiki.training.record.run_record import RunRecord
from tsugiki.training.run.stages import train
from tsugiki.training.score.questions import Question, right_answers
from tsugiki.training.score.targets import answer_with_targets, evaluation_targets, loaded_targets
from tsugiki.training.settings.config import RunConfig

PROMPTS = ("明治時代の", "東京市", "夏目先生、")
"""Beginnings that the base continues in hiragana, and that set no kana for the adapter."""
_ASSETS = files("tsugiki") / "assets"
_ANSWER = 48  # tokens, more than any answer has


@dataclass(frozen=True)
class Asked:
    """A question in a phrasing that was not learned, and its answers by the base and by the adapter."""

    question: str
    expected: str
    answers: tuple[str, str]
    right: tuple[bool, bool]


def quickstart(out: Path | None = None) -> RunRecord:
    """Train into `out`, or into the first of `tsugiki-quickstart`, `tsugiki-quickstart-2`, … that does not exist."""
    return train(
        RunConfig(
            model=EMBEDDED,
            data=(str(_ASSETS / "quickstart"),),
            out=str(out or _free_folder("tsugiki-quickstart")),
            prompts=PROMPTS,
            sample_tokens=60,
        )
    )


def questions_config(base: str, out: Path | None = None) -> RunConfig:
    """Return the settings of a run on the facts in the reader's language.

    The folder is `out`, or the first of `tsugiki-questions`, `tsugiki-questions-2`, … that does not exist.
    """
    return RunConfig(
        model=base,
        data=(str(_ASSETS / "questions" / f"{language()}.jsonl"),),
        held_out=str(_unseen()),
        out=str(out or _free_folder("tsugiki-questions")),
    )


def ask_unseen(record: RunRecord) -> list[Asked]:
    """Let base and adapter of a finished run answer the questions that were not learned, as `tsugiki eval` does."""
    path = _unseen()
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    questions = [Question(str(path), row["prompt"], "exact", (row["completion"],)) for row in rows]
    targets = loaded_targets(evaluation_targets([], [str(record.folder())]))
    results = answer_with_targets(targets, questions, _ANSWER, ProgressDisplay())
    texts = [[given.answer.strip() for given in result.answers] for result in results]
    right = [right_answers(answers, [row["keys"] for row in rows]) for answers in texts]
    return [
        Asked(row["prompt"], row["completion"], answers, marks)
        for row, answers, marks in zip(rows, zip(*texts, strict=True), zip(*right, strict=True), strict=True)
    ]


def _unseen() -> Path:
    return Path(str(_ASSETS / "questions" / f"{language()}-unseen.jsonl"))


def _free_folder(name: str) -> Path:
    folder, number = Path(name), 1
    while folder.exists():
        number += 1
        folder = Path(f"{name}-{number}")
    return folder
