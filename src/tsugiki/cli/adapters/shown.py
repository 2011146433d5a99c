"""What the commands that make adapters show."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from tsugiki.adapters.algebra.combine import Track
    from tsugiki.adapters.algebra.truncate import RankReduction


@contextmanager
def layers_bar(label: str) -> Iterator["Track"]:
    """What goes through layers and shows how far it is, in a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        yield lambda paths: progress.track(paths, description=label)


def print_kept(kept: Mapping[str, "RankReduction"], *lines: str) -> None:
    """A row for each layer: its rank before and after, and the share of its update that is kept."""
    from tsugiki.cli.tables import print_table

    rows = [[path, str(layer.before), str(layer.after), f"{layer.energy:.2%}"] for path, layer in kept.items()]
    print_table((["layer", "rank", "→", "energy kept"], rows), *lines)


def print_written(out: Path) -> None:
    """Where the new adapter is, and how large."""
    from tsugiki.adapters.format import WEIGHTS_FILE

    typer.echo(f"→ {out} ({(out / WEIGHTS_FILE).stat().st_size / 1e6:.2f} MB)")
