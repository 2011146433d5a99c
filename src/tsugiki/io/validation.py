"""Messages for the validation errors of pydantic, in the language of the user."""

import re
from collections.abc import Collection
from difflib import get_close_matches

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tsugiki.errors import error_text
from tsugiki.language import _, marked, sentences

LONGEST_MESSAGE = 1500
"""The most characters of a message about invalid settings."""
_MAX_PROBLEMS = 5
_TYPE_NAME = re.compile(r"function-|constrained-|literal\[|json-or-python\[|dict\[|(bool|int|float|str)$")
"""Parts of an error's location that name a type and not a field; pydantic adds them for settings of several types."""

OTHER_NAMES = {
    **dict.fromkeys(("rank", "lora_rank", "lora_r"), "r"),
    **dict.fromkeys(("base", "base_model", "model_name_or_path"), "model"),
    **dict.fromkeys(("dataset", "datasets"), "data"),
    **dict.fromkeys(("output", "output_dir"), "out"),
    **dict.fromkeys(("num_epochs", "num_train_epochs"), "epochs"),
    **dict.fromkeys(("sequence_len", "cutoff_len"), "block_size"),
    **dict.fromkeys(("lora_target", "lora_target_modules"), "target_modules"),
    **dict.fromkeys(("val", "val_set_size"), "validation"),
    "per_device_train_batch_size": "micro_batch_size",
    "iters": "max_steps",
    "adapter_path": "adapter",
    "max_tokens": "max_new_tokens",
    "dtype": "base_dtype",
}
"""Name of a setting in another program -> name."""

_PROBLEMS = {
    "missing": marked("field required"),
    "extra_forbidden": marked("unknown setting"),
    "greater_than": marked("input should be greater than {gt}"),
    "greater_than_equal": marked("input should be greater than or equal to {ge}"),
    "less_than": marked("input should be less than {lt}"),
    "less_than_equal": marked("input should be less than or equal to {le}"),
    "literal_error": marked("input should be {expected}"),
    "finite_number": marked("input should be a finite number"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), marked("input should be a valid integer")),
    **dict.fromkeys(("float_type", "float_parsing"), marked("input should be a valid number")),
    **dict.fromkeys(("bool_type", "bool_parsing"), marked("input should be true or false")),
    "string_type": marked("input should be a text"),
    "string_unicode": marked("input should be a text in UTF-8"),
    "string_too_short": marked("input should not be empty"),
    "dict_type": marked("input should be settings"),
    # `is_instance_of`: settings name only the class `Sequence`
    **dict.fromkeys(("tuple_type", "is_instance_of", "sequence_str", "list_type"), marked("input should be a list")),
    "too_short": marked("input should have at least {min_length} entries"),
    "too_long": marked("input should have at most {max_length} entries"),
    "union_tag_invalid": marked("{discriminator}: {tag} is none of {expected_tags}"),
    "string_pattern_mismatch": marked("input should match the pattern {pattern}"),
}
"""The messages for the most common error types of pydantic."""


def problem_text(problem: ErrorDetails) -> str:
    """Return the message for an error, without the name and the value of the field.

    For error types that are not in `_PROBLEMS`, the English message of pydantic is returned.
    """
    known = _PROBLEMS.get(problem["type"])
    if known is None:
        return problem["msg"].removeprefix("Value error, ")
    return _(known, **problem.get("ctx", {}))


def describe_problems(error: ValidationError, known_settings: Collection[str]) -> str:
    """Return the first problems of a validation in one line, each with the name of its field.

    An unknown setting is compared with `known_settings`, to propose the nearest.
    """
    problems = []
    for problem in error.errors():
        if problem["type"] == "literal_error" and any(_TYPE_NAME.match(str(part)) for part in problem["loc"]):
            continue  # the setting is a number or `auto`; the problem of the number is listed
        where = error_text(".".join(str(part) for part in problem["loc"] if not _TYPE_NAME.match(str(part))), 100)
        has_value = where and problem["type"] not in ("missing", "extra_forbidden")
        message = problem_text(problem)
        message = message[:1].lower() + message[1:] if where else message
        if problem["type"] == "extra_forbidden":
            message += near_setting(where, known_settings)
        if has_value:
            message += _(" (got {value})", value=error_text(repr(problem["input"]), 100))
        problems.append(f"{where}: {message}" if where else message)
    left = len(problems) - _MAX_PROBLEMS
    more = [_("and {count:,} more problems", count=left)] if left > 0 else []
    return error_text(sentences(problems[:_MAX_PROBLEMS] + more), LONGEST_MESSAGE)


def near_setting(unknown: str, known: Collection[str]) -> str:
    """Return a suggestion to append to the error for an unknown setting; empty if no known one is similar."""
    other = OTHER_NAMES.get(unknown)
    near = [other] if other in known else get_close_matches(unknown, known, n=1)
    return _("; did you mean {name!r}?", name=near[0]) if near else ""
