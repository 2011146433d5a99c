"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from tsugiki.errors import TsugikiError
from tsugiki.language import _

ADAPTER_HELP = "An adapter: a name in the library, or a folder."

Library: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--library",
        help="The library's folder; if unset $TSUGIKI_ADAPTERS, or else ~/.local/share/tsugiki/adapters.",
        show_default=False,
    ),
]

NewAdapter: TypeAlias = Annotated[
    str, typer.Option("--out", help="A new name in the library, or the path of a new folder.")
]

AllowBaseMismatch: TypeAlias = Annotated[
    bool,
    typer.Option("--allow-base-mismatch", help="Use an adapter although it was trained on another base."),
]

Weights: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="The factor on the update of each adapter, such as 0.7,0.3; negative ones subtract. 1 for each if unset.",
        show_default=False,
    ),
]


def parse_weights(text: str | None) -> list[float] | None:
    """Parse the value of --weights, numbers separated by commas; None stays None.

    Raises:
        TsugikiError: a part is not a number.
    """
    if text is None:
        return None
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise TsugikiError(
            _("--weights is {text!r}; pass a number for each adapter, such as 0.7,0.3").format(text=text)
        ) from error
