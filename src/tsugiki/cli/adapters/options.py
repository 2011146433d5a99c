"""What several of the commands take."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

Library: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--library",
        help="The library's folder; $TSUGIKI_ADAPTERS if unset, else tsugiki/adapters in ~/.local/share.",
        show_default=False,
    ),
]

ADAPTER_HELP = "An adapter: a name in the library, or a folder."
