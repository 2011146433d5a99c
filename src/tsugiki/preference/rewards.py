"""Rules that score answers: what each of them is, and the scores of answers.

    regex:PATTERN      1 if the pattern is found in the answer, otherwise 0
    schema:FILE.json   1 if the answer is JSON that the schema in the file allows, otherwise 0
    field:NAME         1 if the answer is what the field NAME of the prompt's row has, but for case, width and white
                       space; of a number, if it is the last one in the answer; of an object, the share of its fields
                       that the answer, as JSON, has with the same values
    grader:JSON        what one of OpenAI's graders gives (`graders`)
    FILE.py            what the function `reward` in a Python file returns; FILE.py:NAME for another function
    command:PROGRAM …  the numbers that a program writes, one a line, for the lines of JSON that it reads

The last two are programs (`rule_programs`). A weight stands before a rule: `0.5*regex:…`. The reward of an answer is
the weighted sum of its scores. A rule can leave an answer out (None), and one that fails for an answer leaves it
without a reward; where it fails too often, that is an error.
"""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from pydantic_core import from_json

from tsugiki.data.read.answers import PromptRow
from tsugiki.data.records import folded
from tsugiki.errors import TsugikiError, error_text, unreadable
from tsugiki.io.digests import file_sha256
from tsugiki.io.json import read_json
from tsugiki.language import _
from tsugiki.model.names import compile_search
from tsugiki.preference.graders import read_grader
from tsugiki.preference.rule_programs import Result, command_scores, python_scores

Answered: TypeAlias = tuple[PromptRow, str]
"""A prompt and an answer to it."""
Note: TypeAlias = Callable[[str], None]

_WEIGHT = re.compile(r"(-?\d*\.?\d+)\s*\*\s*(.+)", re.DOTALL)
_PYTHON = re.compile(r"(.+\.py)(?::(\w+))?")
_NUMBER = re.compile(
    r"(?:(?<![\dA-Za-z.)%°])[-+])?"  # after these it is no sign: 1-2 are two numbers
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\d.])\.\d+)"
    r"(?:[Ee][-+]?\d{1,3}(?!\d))?"
)
_MARKS = str.maketrans("\N{MINUS SIGN}\N{EN DASH}－＋．，", "---+.,")
"""Marks in numbers -> those of ASCII. Digits of any width are read as they are."""
_PREFIXES = ("regex", "schema", "field", "grader", "command")
_WITH_FILES = ("schema", "command", "python")
_MOST_FAILURES = 0.1
"""The share of the answers for which a rule may fail."""


@dataclass(frozen=True)
class Rule:
    """A rule as it was given."""

    text: str
    """Without its weight."""
    kind: str
    """One of `_PREFIXES`, or python."""
    value: str
    """What stands after the prefix; of a Python file, its path."""
    function: str
    weight: float

    @property
    def is_program(self) -> bool:
        """Whether it runs code."""
        return self.kind in ("python", "command")

    def identity(self) -> str:
        """Return the rule with a digest of its files, by which a changed rule is noticed."""
        words = shlex.split(self.value) if self.kind == "command" else [self.value]
        files = [word for word in words if self.kind in _WITH_FILES and Path(word).is_file()]
        name = f"{Path(self.value).name}:{self.function}" if self.kind == "python" else self.text
        return " ".join([f"{self.weight:g}*{name}", *(file_sha256(Path(file))[-16:] for file in files)])


def parse_rule(text: str) -> Rule:
    """Return the rule in a text, with its weight; what is no rule, or names no file, is a TsugikiError."""
    weighted = _WEIGHT.fullmatch(text)
    weight, rule = (float(weighted[1]), weighted[2]) if weighted else (1.0, text)
    kind, _colon, value = rule.partition(":")
    function = ""
    if kind not in _PREFIXES and (python := _PYTHON.fullmatch(rule)):
        kind, value, function = "python", python[1], python[2] or "reward"
    elif kind not in _PREFIXES or not value:
        raise TsugikiError(
            "{text} is no rule; write regex:PATTERN, schema:FILE.json, field:NAME, grader:JSON, FILE.py or "
            "command:PROGRAM, after a weight if it has one (0.5*regex:…)",
            text=error_text(repr(text), 100),
        )
    if kind in ("python", "schema") and not Path(value).is_file():
        raise TsugikiError("the rule {path} does not exist", path=value)
    found = Rule(rule, kind, value, function, weight)
    if not found.is_program:
        _built_in(found)  # the pattern or the schema may be wrong
    return found


def refuse_programs(rules: Any, source: object) -> None:
    """Raise a TsugikiError if a rule that the file `source` names would run code; only a command line or a call may."""
    for text in [rules] if isinstance(rules, str) else rules:
        if parse_rule(str(text)).is_program:
            raise TsugikiError(
                "{source} names a rule that runs code, {quoted}: only the command itself may do so",
                source=source,
                quoted=shlex.quote(str(text)),
            )


def absolute_programs(rules: Sequence[str]) -> list[str]:
    """Return rules in which the path of a Python file is absolute, so that it names the same file from anywhere."""
    return [
        text.replace(rule.value, str(Path(rule.value).absolute()), 1) if rule.kind == "python" else text
        for text, rule in ((text, parse_rule(text)) for text in rules)
    ]


def scores_of(
    rules: Sequence[Rule], answered: Sequence[Answered], seed: str, seconds: float, note: Note
) -> list[tuple[Result, ...]]:
    """Return for each answer the result of each rule.

    `seed` is that of random numbers in a Python rule, and `seconds` what a program may take for an answer. `note` is
    called with a sentence about a rule that has failed for a few answers.
    """
    requests = [
        {"prompt": row.prompt, "answer": answer, "fields": row.fields, "seed": f"{seed} {place}"}
        for place, (row, answer) in enumerate(answered)
    ]
    found = []
    for rule in rules:
        if rule.kind == "command":
            results = command_scores(rule.value, requests, seconds)
        elif rule.kind == "python":
            results = python_scores(rule.value, rule.function, requests, seconds)
        else:
            score = _built_in(rule)
            results = [score(row.fields, answer) for row, answer in answered]
        _note_failures(rule, answered, results, note)
        found.append(results)
    return list(zip(*found, strict=True))


def reward_of(rules: Sequence[Rule], scores: Sequence[Result]) -> float | None:
    """Return the weighted sum of the scores of an answer; None if no rule applies, or one has failed."""
    parts = [rule.weight * one for rule, one in zip(rules, scores, strict=True) if isinstance(one, float)]
    return sum(parts) if parts and not any(isinstance(one, str) for one in scores) else None


def _built_in(rule: Rule) -> Callable[[Mapping[str, Any], str], Result]:
    if rule.kind == "field":
        return partial(_field_score, rule.value)
    if rule.kind == "grader":
        return read_grader(rule.value)
    allows = compile_search(rule.value) if rule.kind == "regex" else _schema_check(rule.value)

    def score(fields: Mapping[str, Any], answer: str) -> Result:
        try:
            return float(allows(answer))
        except TsugikiError as error:  # the search takes too long
            return str(error)

    return score


def _schema_check(path: str) -> Callable[[str], bool]:
    """Return a function that returns whether a text is JSON that the schema in a file allows."""
    # These take 0.05 s to import, and only this rule needs them.
    from jsonschema import Draft202012Validator, SchemaError, ValidationError
    from jsonschema.validators import extend, validator_for
    from jsonschema_specifications import REGISTRY
    from referencing.exceptions import Unresolvable

    def pattern(_validator: object, wanted: str, value: Any, _schema: object) -> Iterator[ValidationError]:
        """Judge the keyword `pattern` with a limit of time, which `re` has not."""
        if isinstance(value, str) and not compile_search(wanted)(value):
            yield ValidationError(wanted)

    schema = read_json(Path(path))
    kind = extend(validator_for(schema, default=Draft202012Validator), {"pattern": pattern})
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise TsugikiError("{path} is no JSON schema: {reason}", path=path, reason=error_text(error.message)) from error
    # With a registry of its own, nothing that a schema refers to is downloaded.
    validator = kind(schema, registry=REGISTRY, format_checker=kind.FORMAT_CHECKER)

    def allows(text: str) -> bool:
        try:
            return bool(validator.is_valid(from_json(text, allow_inf_nan=False)))
        except (ValueError, ArithmeticError, RecursionError):
            return False
        except Unresolvable as error:
            raise unreadable(path, error) from error

    return allows


def _field_score(name: str, fields: Mapping[str, Any], answer: str) -> Result:
    expected = fields.get(name)
    if expected is None or _comparable(expected) in ("", [], {}):
        return None
    if isinstance(expected, str | int | float):
        return float(_is_right(expected if isinstance(expected, str) else json.dumps(expected), answer))
    try:
        wanted, found = _comparable(expected), _comparable(from_json(answer))
    except ValueError:
        return 0.0
    if not isinstance(wanted, Mapping) or not isinstance(found, Mapping):
        return float(bool(found == wanted))
    same = [key for key in wanted if key in found and found[key] == wanted[key]]
    return len(same) / len({*wanted, *found})


def _comparable(value: Any) -> Any:
    """Return a value of JSON in the form for comparison: texts without their case, width and runs of white space."""
    if isinstance(value, str):
        return " ".join(folded(value).split())
    if isinstance(value, Mapping):
        return {name: _comparable(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_comparable(one) for one in value]
    return isinstance(value, bool), value  # true is not 1


def _is_right(expected: str, answer: str) -> bool:
    """Return whether an answer is a text; if that is a number, whether the last number of the answer is the same."""
    wanted, numbers = expected.translate(_MARKS).strip(), _NUMBER.findall(answer.translate(_MARKS))
    if not _NUMBER.fullmatch(wanted):
        return bool(_comparable(answer) == _comparable(expected))
    values = [Decimal(number.replace(",", "")) for number in (wanted, *numbers[-1:])]
    return len(values) == 2 and values[0] == values[1]


def _note_failures(rule: Rule, answered: Sequence[Answered], results: Sequence[Result], note: Note) -> None:
    """Note the answers for which a rule has failed; too many of them are a TsugikiError."""
    failed = [(*one, result) for one, result in zip(answered, results, strict=True) if isinstance(result, str)]
    for row, answer, reason in failed[:1]:
        message = _(
            "the rule {rule} failed for {failed:,} of {count:,} answers, and may for a tenth of them; first for "
            "{source}, prompt {prompt}, answer {answer}: {reason}"
        )
        texts = {"prompt": error_text(repr(row.text), 80), "answer": error_text(repr(answer), 80), "reason": reason}
        counted = {"failed": len(failed), "count": len(results)}
        text = message.format(rule=rule.text, source=row.source, **counted, **texts)
        if len(failed) > _MOST_FAILURES * len(results):
            raise TsugikiError(text)
        note(text)
