"""The program that computes a rule in Python, in a process of its own (see `rule_programs`).

    python rule_process.py FILE FUNCTION SECONDS

It reads answers as JSON, one a line: prompt, answer, the fields of the prompt's row, and a seed. For each it writes a
number, null where the rule does not apply, or a text that says why there is neither; before, an empty list, or why the
rule cannot be loaded. A function of lists, as TRL's, gets all answers to a prompt at once. The program ends if an
answer takes longer than so many seconds, or several take that long on average. What the rule itself prints goes to
standard error. This file imports nothing of Tsugiki, so that it starts at once.
"""

import faulthandler
import inspect
import io
import json
import math
import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from types import ModuleType
from typing import Any


def main(path: str, name: str, seconds: str) -> None:
    """Load the function and answer requests until there are no more."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the rule prints is no reply
    requests, sys.stdin = os.fdopen(os.dup(0), encoding="utf-8"), io.StringIO()
    sys.path[0] = os.path.dirname(os.path.abspath(path))  # as for a program: the modules beside it can be imported
    try:
        function = _function(path, name)
        takes_lists = "completions" in inspect.signature(function).parameters
        print("[]", file=replies, flush=True)
    except BaseException as error:
        print(json.dumps(_error_text(error)), file=replies, flush=True)
        return
    with open(os.devnull, "w") as nowhere:
        for _prompt, to_prompt in groupby(map(json.loads, requests), lambda one: (one["prompt"], one["fields"])):
            answers = list(to_prompt)
            for asked in [answers] if takes_lists else [[one] for one in answers]:
                random.seed(asked[0]["seed"])  # so that a rule with random numbers gives the same ones after a kill
                # this also ends what holds the GIL
                faulthandler.dump_traceback_later(float(seconds) * len(asked), exit=True, file=nowhere)
                results = _results(function, asked[0]["prompt"], [one["answer"] for one in asked], asked[0]["fields"])
                faulthandler.cancel_dump_traceback_later()
                print(*map(json.dumps, results), sep="\n", file=replies, flush=True)


def _function(path: str, name: str) -> Callable[..., Any]:
    module = sys.modules["reward_rule"] = ModuleType("reward_rule")  # dataclasses look for it
    module.__file__ = path
    with open(path, "rb") as file:
        exec(compile(file.read(), path, "exec"), vars(module))  # the user named this file to be run
    function: Callable[..., Any] = getattr(module, name)
    return function


def _results(
    function: Callable[..., Any], prompt: Any, answers: Sequence[str], fields: Mapping[str, Any]
) -> list[float | str | None]:
    """Return the results for answers to a prompt: one by a function of one answer; or all by one of lists."""
    parameters, count = inspect.signature(function).parameters, len(answers)
    takes_all = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    try:
        if "completions" not in parameters:
            given = {f"{name}_" if name == "answer" else name: value for name, value in fields.items()}
            known = {name: value for name, value in given.items() if takes_all or name in parameters}
            return [number_or_reason(function(prompt, answers[0], **known))]
        is_chat = isinstance(prompt, list)
        completions = [[{"role": "assistant", "content": one}] if is_chat else one for one in answers]
        columns = {**{name: [value] * count for name, value in fields.items()}, "prompts": [prompt] * count}
        known = {name: column for name, column in columns.items() if takes_all or name in parameters}
        found = [number_or_reason(one) for one in function(completions=completions, **known)]
        return found if len(found) == count else [f"it returned {len(found)} numbers for {count} answers"] * count
    except Exception as error:
        return [_error_text(error)] * count


def number_or_reason(value: Any) -> float | str | None:
    """Return what a rule has returned as a number, or why it is none."""
    try:
        number = None if value is None else float(math.nan if isinstance(value, str | bytes) else value)
    except (TypeError, ValueError):
        number = math.nan
    return number if number is None or math.isfinite(number) else f"it returned {value!r:.80}, not a finite number"


def _error_text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]


if __name__ == "__main__":
    main(*sys.argv[1:])
