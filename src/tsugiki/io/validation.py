"""Messages for the validation errors of pydantic, in the language of the user."""

from pydantic_core import ErrorDetails

from tsugiki.language import _, marked

_PROBLEMS = {
    "missing": marked("field required"),
    "extra_forbidden": marked("unknown setting"),
    "greater_than": marked("input should be greater than {gt}"),
    "greater_than_equal": marked("input should be greater than or equal to {ge}"),
    "less_than": marked("input should be less than {lt}"),
    "less_than_equal": marked("input should be less than or equal to {le}"),
    "literal_error": marked("input should be {expected}"),
    "finite_number": marked("input should be a finite number"),
    "int_type": marked("input should be a valid integer"),
    "int_parsing": marked("input should be a valid integer"),
    "int_from_float": marked("input should be a valid integer"),
    "float_type": marked("input should be a valid number"),
    "float_parsing": marked("input should be a valid number"),
    "bool_type": marked("input should be true or false"),
    "bool_parsing": marked("input should be true or false"),
    "string_type": marked("input should be a text"),
    "string_too_short": marked("input should not be empty"),
    "dict_type": marked("input should be settings"),
    "tuple_type": marked("input should be a list"),
    "list_type": marked("input should be a list"),
    "too_short": marked("input should have at least {min_length} entries"),
    "too_long": marked("input should have at most {max_length} entries"),
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
    return _(known).format(**problem.get("ctx", {}))
