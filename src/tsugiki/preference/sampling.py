"""Answers of a model to prompts, several to each, their rewards, and pairs of the best and the worst of them.

Each answer has a seed of its own, from a text that names the run and the round, and its place. So the same answers come
again.

An answer that reaches the largest number of tokens without an end is cut off. It is taken up to the end of its last
whole sentence, where the model learns to end. One without a whole sentence stays cut off: it has a reward as any other
answer, and can be the rejected answer of a pair, but never the chosen one.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from pydantic import BaseModel

from tsugiki.data.read.answers import PromptRow
from tsugiki.io.digests import check_digest, sha256_bytes
from tsugiki.io.json import read_rows, write_rows
from tsugiki.language import _
from tsugiki.preference.rule_programs import Result

_REPEATED = 0.5
_SENTENCES = re.compile(r".*(?:[。．！？!?…]|[.](?=\s|$))[」』）)\"'”’]*", re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """An answer, and what it is worth."""

    text: str
    was_cut: bool
    """Whether it reached the largest number of tokens."""
    is_whole: bool
    """Whether it ends where it may end."""
    scores: Sequence[Result] = ()
    """For each rule."""
    reward: float | None = None


@dataclass(frozen=True)
class _Line(PromptRow):
    """A line of a file of answers."""

    answers: Sequence[Answer]


@dataclass(frozen=True)
class PromptAnswers:
    """The answers to a prompt."""

    row: PromptRow
    answers: Sequence[Answer]

    @property
    def rewards(self) -> list[float]:
        """The rewards of the answers that have one."""
        return [one.reward for one in self.answers if one.reward is not None]

    @property
    def are_alike(self) -> bool:
        """Whether all have the same reward, so that nothing can be learned from them."""
        return len(set(self.rewards)) < 2

    def pair(self) -> tuple[Answer, Answer] | None:
        """Return the best whole answer and the worst one, both with text; None if the first is not better.

        Of equally good ones, those are taken that differ least in length, so that length is not what is learned.
        """
        ranked = [(one.reward, one) for one in self.answers if one.reward is not None and one.text.strip()]
        high = max((reward for reward, one in ranked if one.is_whole), default=0.0)
        low = min((reward for reward, _one in ranked), default=0.0)
        best, worst = ([one for reward, one in ranked if reward == wanted] for wanted in (high, low))
        pairs = [(one, other) for one in best if one.is_whole for other in worst]
        is_better = bool(pairs) and high > low
        return min(pairs, key=lambda pair: abs(len(pair[0].text) - len(pair[1].text))) if is_better else None


class AnswerCounts(BaseModel):
    """What is known of the answers to some prompts."""

    drawn: int = 0
    """Number of prompts."""
    alike: int = 0
    """Number of those whose answers have all the same reward."""
    pairs: int = 0
    """Number of pairs of a better and a worse answer."""
    answers: int = 0
    cut: int = 0
    """Number of answers that reached the largest number of tokens."""
    reward: float | None = None
    """Mean reward; None if no answer has one."""


def count_answers(answers: Sequence[PromptAnswers]) -> AnswerCounts:
    """Count answers to prompts."""
    everything = [answer for one in answers for answer in one.answers]
    rewards = [reward for one in answers for reward in one.rewards]
    alike, pairs = sum(one.are_alike for one in answers), sum(one.pair() is not None for one in answers)
    cut, reward = sum(answer.was_cut for answer in everything), fmean(rewards) if rewards else None
    counts = {"drawn": len(answers), "alike": alike, "pairs": pairs, "answers": len(everything), "cut": cut}
    return AnswerCounts(**counts, reward=reward)


def variety(text: str) -> float:
    """Return the share of different ones among the sequences of three characters of a text; 1 if it has no three."""
    sequences = [text[at : at + 3] for at in range(max(len(text) - 2, 1))]
    return len(set(sequences)) / len(sequences)


def is_spoiled(text: str) -> bool:
    """Return whether an answer is empty, or repeats itself so much that its variety is below a half."""
    return not text.strip() or variety(text) < _REPEATED


def nothing_to_learn(counted: AnswerCounts, file: Path) -> str:
    """Return why there are no pairs, in a sentence; `file` is that of the answers."""
    message = _(
        "no whole answer is better than another; {cut:,} of {answers:,} were cut off: allow more tokens ({file})"
    )
    if counted.reward is None:
        message = _("no rule applies to any of the {answers:,} answers ({file})")
    elif counted.alike == counted.drawn:
        message = _("all answers to each prompt score alike ({reward:g} on average): nothing can be learned ({file})")
    return message.format(**vars(counted), file=file)


def seeds_of(seed: str, count: int) -> list[int]:
    """Return a seed for each of so many answers."""
    return [int.from_bytes(sha256_bytes(f"{seed} {place}".encode())[:8]) for place in range(count)]


def answer_of(text: str, was_cut: bool) -> Answer:
    """Return an answer without a reward; one that was cut off, up to the end of its last sentence if it has one."""
    whole = _SENTENCES.match(text) if was_cut else None
    return Answer(whole[0] if whole else text, was_cut, is_whole=whole is not None or not was_cut)


def write_answers(path: Path, answers: Iterable[PromptAnswers]) -> None:
    """Write all answers with their scores, a line for each prompt, atomically."""
    write_rows(path, ({**vars(one.row), "answers": [vars(answer) for answer in one.answers]} for one in answers))


def read_answers(path: Path) -> list[PromptAnswers]:
    """Return the answers that `write_answers` has written; a file that is damaged or was changed is a TsugikiError."""
    check_digest(path)
    return [PromptAnswers(PromptRow(one.prompt, one.fields, one.source), one.answers) for one in read_rows(path, _Line)]


def write_pairs(path: Path, answers: Iterable[PromptAnswers]) -> None:
    """Write the best and the worst answer to each prompt, where they differ, as pairs to learn, with their rewards."""
    rows = []
    for one in answers:
        if pair := one.pair():
            both = {"chosen": _completion(one, pair[0]), "rejected": _completion(one, pair[1])}
            rows.append({"prompt": one.row.prompt, **both, "scores": [answer.reward for answer in pair]})
    write_rows(path, rows)


def write_prompts(path: Path, rows: Iterable[PromptRow]) -> None:
    """Write prompts as plain texts."""
    write_rows(path, [{"text": row.text} for row in rows])


def _completion(answers: PromptAnswers, answer: Answer) -> str | list[dict[str, str]]:
    """Return an answer in the form of its prompt: a text, or messages."""
    return answer.text if isinstance(answers.row.prompt, str) else [{"role": "assistant", "content": answer.text}]
