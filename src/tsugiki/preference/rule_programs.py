"""Rules that are programs: a function in a Python file, and a command. Both have a limit of time, and get no shell.

They run with all rights of the user, so nothing but the command line, or the call of `train`, may name them. A Python
file runs in a process of its own, which ends if an answer takes too long, and is started again for the next one.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from tsugiki.errors import TsugikiError, error_text
from tsugiki.language import _
from tsugiki.preference import rule_process

Result: TypeAlias = float | str | None
"""A score; None where the rule does not apply; or why there is none, if the rule has failed."""

_LOADING = 120.0  # seconds that the imports of a Python file may take


def python_scores(path: str, function: str, answers: Sequence[dict[str, Any]], seconds: float) -> list[Result]:
    """Return what a function in a Python file returns for each answer; a file that cannot be used is a TsugikiError."""
    words = [sys.executable, rule_process.__file__, path, function, str(seconds)]
    found: list[Result] = []
    while len(found) < len(answers):
        left = answers[len(found) :]
        written, _status = _written(path, words, left, _LOADING + seconds * len(left))
        loaded, *results = map(json.loads, written or ['"it ended while it was loaded"'])
        if isinstance(loaded, str):
            raise TsugikiError("the rule {path} cannot be used: {reason}", path=path, reason=loaded)
        found += results
        if len(results) < len(left):
            found.append(_("it took longer than {seconds:g} s, or its process ended", seconds=seconds))
    return found


def command_scores(command: str, answers: Sequence[dict[str, Any]], seconds: float) -> list[Result]:
    """Return the number that a command writes for each answer, which it reads as a line of JSON; it may write null.

    A command that ends with an error, that writes another number of lines, or that takes longer than `seconds` for each
    of them on average, is a TsugikiError: which number belongs to which answer is not known.
    """
    lines = [{**one["fields"], "prompt": one["prompt"], "answer": one["answer"]} for one in answers]
    written, status = _written(command, shlex.split(command), lines, seconds * len(lines))
    if status or len(written) != len(lines):
        raise TsugikiError(
            "the rule {command} ended with status {status}, and {written:,} numbers for {count:,} answers",
            command=command,
            status=status,
            written=len(written),
            count=len(lines),
        )
    return [None if line.strip() in ("", "null") else _number(line) for line in written]


def _number(line: str) -> Result:
    with suppress(ValueError):
        return rule_process.number_or_reason(float(line))
    return rule_process.number_or_reason(line)


def _written(rule: str, words: Sequence[str], lines: Sequence[dict[str, Any]], seconds: float) -> tuple[list[str], int]:
    """Return the lines that a program writes for lines of JSON, and its status. It is ended with all it has started."""
    pipe, text = subprocess.PIPE, "".join(json.dumps(line) + "\n" for line in lines)
    try:
        process = subprocess.Popen(words, stdin=pipe, stdout=pipe, encoding="utf-8", start_new_session=True)
    except OSError as error:
        raise TsugikiError(
            "the rule {rule} cannot be started: {reason}", rule=rule, reason=error.strerror or error_text(error)
        ) from error
    try:
        written, _nothing = process.communicate(text, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise TsugikiError(
            "the rule {rule} took longer than {seconds:g} s (answers: {count:,})",
            rule=rule,
            seconds=seconds,
            count=len(lines),
        ) from error
    finally:
        with suppress(OSError):  # it has ended, and nothing that it has started is left
            os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
        process.wait()
    return written.splitlines(), process.returncode
