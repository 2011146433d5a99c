"""Output of the commands that make new adapters."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tsugiki.language import _

if TYPE_CHECKING:
    from tsugiki.adapters.algebra.matrices import RankReduction


def track_layers(paths: Sequence[str]) -> Iterator[str]:
    """Iterate over layers and show a progress bar in a terminal."""
    from tsugiki.io.progress import ProgressDisplay

    return ProgressDisplay().track(paths, _("layers"))


def print_kept(kept: Mapping[str, "RankReduction"], *lines: str) -> None:
    """Print a table with each layer's rank before and after and the share of its update that is kept, then `lines`."""
    from tsugiki.cli.tables import print_table

    rows = [[path, str(layer.before), str(layer.after), f"{layer.energy:.2%}"] for path, layer in kept.items()]
    print_table(([_("layer"), _("rank"), "→", _("energy kept")], rows), *lines)


def print_written(out: Path) -> None:
    """Print the folder and the size of a new adapter."""
    from tsugiki.cli.tables import print_next_command
    from tsugiki.io.file_names import ADAPTER_FILE
    from tsugiki.io.formatting import format_size

    typer.echo(f"→ {out} ({format_size((out / ADAPTER_FILE).stat().st_size)})")
    print_next_command("chat", str(out))
