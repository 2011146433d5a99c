"""`tsugiki preview`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tsugiki.cli.flags import with_flags, words_of
from tsugiki.errors import TsugikiError
from tsugiki.language import _
from tsugiki.training.config import RunConfig


@with_flags(RunConfig, exclude=["out", "method_config"])
def preview_command(
    config: Annotated[Path | None, typer.Argument(help="YAML file of a run's settings. Flags override it.")] = None,
    settings: Any = None,
    rows: Annotated[int, typer.Option(min=1, help="Number of rows to show.")] = 3,
    html: Annotated[Path | None, typer.Option(help="HTML file to write the preview to as well.")] = None,
) -> None:
    """Show the first rows of a run, counts, and the time that it would take, without training."""
    from tsugiki.cli.checks import check_settings
    from tsugiki.cli.libraries import import_libraries
    from tsugiki.training.config_files import load_config, read_yaml

    check_settings({**(read_yaml(config) if config is not None else {}), **settings, "out": "preview"})
    import_libraries("tsugiki.training.run")
    if config is None:
        settings["out"] = "preview"  # required, but nothing is written to it
    run_config = load_config(config, settings)
    if html and not html.absolute().parent.is_dir():
        raise TsugikiError(
            _("{html}: the folder {parent} does not exist; create it first").format(html=html, parent=html.parent)
        )

    from rich.console import Console

    from tsugiki.cli.tables import print_next_command
    from tsugiki.io.atomic import write_text
    from tsugiki.report.preview import to_html, to_terminal
    from tsugiki.training.workflows.preview import preview

    shown = preview(run_config, rows)
    console = Console(highlight=False)
    console.print(to_terminal(shown, colours=console.color_system is not None))
    if html:
        write_text(html, to_html(shown))
        typer.echo(_("page: {path}").format(path=html))
    if config is None:
        name = Path(run_config.data[0]).stem or "text"
        print_next_command("train", *words_of(RunConfig, {**settings, "out": f"runs/{name}"}))
    else:
        print_next_command("train", str(config), *words_of(RunConfig, settings))
