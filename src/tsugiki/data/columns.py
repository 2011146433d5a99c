"""Names of a data set's columns that differ from the names in `schemas`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

from tsugiki.errors import error_text
from tsugiki.language import _

Columns: TypeAlias = Mapping[str, str]
"""Field of `schemas` -> the name of its column."""

NO_COLUMNS: Columns = MappingProxyType({})


def parse_columns(text: str) -> dict[str, str]:
    """Parse names of columns in the form `prompt=question,completion=answer`.

    Raises:
        ValueError: the text has another form.
    """
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(field.strip() and sign and column.strip() for field, sign, column in pairs):
        raise ValueError(
            _("columns are {text}; write field=column, such as prompt=question,completion=answer").format(
                text=error_text(repr(text), 100)
            )
        )
    return {field.strip(): column.strip() for field, sign, column in pairs}
