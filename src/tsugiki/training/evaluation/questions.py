"""Questions with expected answers: a file of prompts, and how each answer is compared.

    {"prompt": "2 + 2 =", "expected": "4"}                                        exact (the default)
    {"prompt": "The capital of Japan is", "expected": "Tokyo", "mode": "contains"}
    {"messages": [{"role": "user", "content": "When?"}], "expected": "\\d{4}", "mode": "regex"}
    {"prompt": "Roses are", "choices": [" red", " loud"], "expected": " red"}     choice (the default with choices)

A prompt is a text, which is continued as it is, or a list of messages, which the chat template of the model renders. In
mode choice nothing is generated: the answer is the choice to which the model gives the highest probability.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from tsugiki.data.read.schemas import read_row
from tsugiki.data.read.tables import jsonl_rows
from tsugiki.data.records import Completion, Conversation, Message
from tsugiki.errors import TsugikiError, error_text
from tsugiki.language import _
from tsugiki.model.patterns import compile_search

Mode: TypeAlias = Literal["exact", "contains", "regex", "choice"]
"""How an answer is compared with what is expected."""

_ANY_ANSWER = "?"


@dataclass(frozen=True)
class Question:
    """A prompt and its expected answers."""

    source: str
    """`file:line`."""
    prompt: str | tuple[Message, ...]
    mode: Mode
    expected: tuple[str, ...]
    """Texts or regular expressions, one of which suffices."""
    choices: tuple[str, ...] = ()
    """The answers to choose from in mode choice; otherwise none."""

    def answered(self, answer: str) -> Completion | Conversation:
        """Return the training record in which `answer` follows the prompt."""
        if isinstance(self.prompt, str):
            return Completion(self.prompt, answer, self.source)
        return Conversation((*self.prompt, Message("assistant", answer)), self.source)


def read_questions(path: Path) -> list[Question]:
    """Read questions from a file of JSON Lines.

    Raises:
        TsugikiError: the file cannot be read or has no question, or a question is not as the module docstring shows.
    """
    try:
        rows = jsonl_rows(lambda: path.open("rb"), str(path))
        questions = [_question(row, f"{path}:{number}") for number, row in rows]
    except OSError as error:
        raise TsugikiError(
            _("{path} cannot be read: {strerror}").format(path=path, strerror=error.strerror or error_text(error))
        ) from error
    if not questions:
        raise TsugikiError(
            _("{path} is empty: write one question in each line, with prompt and expected").format(path=path)
        )
    return questions


def _question(row: Mapping[str, Any], source: str) -> Question:
    mode: Any = row.get("mode") or ("choice" if row.get("choices") is not None else "exact")
    if mode not in get_args(Mode):
        raise TsugikiError(
            _("{source} has the unknown mode {mode}; use one of {get_args}").format(
                source=source, mode=error_text(repr(mode), 40), get_args=", ".join(get_args(Mode))
            )
        )
    if row.get("expected") is None:
        raise TsugikiError(
            _("{source} has no expected; add the expected answer, a text or a list of texts").format(source=source)
        )
    expected = row["expected"]
    answers = _texts([expected] if isinstance(expected, str) else expected, f"{source}: expected")
    choices: tuple[str, ...] = ()
    if mode == "choice":
        choices = _choices(row.get("choices"), answers, source)
    elif row.get("choices") is not None:
        raise TsugikiError(
            _("{source} has choices and mode {mode}; leave out one of the two, or use mode choice").format(
                source=source, mode=mode
            )
        )
    if mode == "regex":
        for expression in answers:
            try:
                compile_search(expression)
            except TsugikiError as error:
                raise TsugikiError(f"{source}: expected: {error}") from error
    return Question(source, _prompt(row, source), mode, answers, choices)


def _prompt(row: Mapping[str, Any], source: str) -> str | tuple[Message, ...]:
    given = row.get("prompt") if row.get("messages") is None else row["messages"]
    if isinstance(given, str):
        record = read_row({"prompt": given, "completion": _ANY_ANSWER}, source)
        assert isinstance(record, Completion)
        return record.prompt
    if not isinstance(given, list) or not given:
        raise TsugikiError(
            _('{source} has no prompt; add a text, or a list of messages like {{"role": …, "content": …}}').format(
                source=source
            )
        )
    if isinstance(given[-1], Mapping) and given[-1].get("role") == "assistant":
        raise TsugikiError(
            _("{source} ends with a turn of the assistant; put its text into expected").format(source=source)
        )
    record = read_row({"messages": [*given, {"role": "assistant", "content": _ANY_ANSWER}]}, source)
    assert isinstance(record, Conversation)
    return record.messages[:-1]


def _choices(given: Any, expected: tuple[str, ...], source: str) -> tuple[str, ...]:
    if given is None:
        raise TsugikiError(
            _("{source} has mode choice but no choices; add a list of two or more texts").format(source=source)
        )
    choices = _texts(given, f"{source}: choices")
    if len(set(choices)) < len(choices) or len(choices) < 2:
        raise TsugikiError(_("{source}: choices must be two or more different texts").format(source=source))
    if unknown := [answer for answer in expected if answer not in choices]:
        raise TsugikiError(
            _("{source}: expected is {unknown}, which is none of the choices").format(
                source=source, unknown=error_text(repr(unknown[0]), 80)
            )
        )
    return choices


def _texts(given: Any, where: str) -> tuple[str, ...]:
    if not isinstance(given, list) or not given or not all(isinstance(text, str) and text.strip() for text in given):
        raise TsugikiError(_("{where} must be a text that is not empty, or a list of such texts").format(where=where))
    for text in given:
        read_row({"text": text}, where)  # refuses text that tokenizers cannot read
    return tuple(given)
