"""What several of the commands take."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from tsugiki.errors import TsugikiError

Library: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--library",
        help="The library's folder; $TSUGIKI_ADAPTERS if unset, else tsugiki/adapters in ~/.local/share.",
        show_default=False,
    ),
]

ADAPTER_HELP = "An adapter: a name in the library, or a folder."


def parse_weights(text: str) -> list[float]:
    """A flag of numbers with commas between.

    Raises:
        TsugikiError: it is none.
    """
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise TsugikiError(f"--weights is {text!r}; give a number for each adapter, such as 0.7,0.3") from error
