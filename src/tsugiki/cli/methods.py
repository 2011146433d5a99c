"""`tsugiki methods`."""

from typing import Annotated

import typer


def methods_command(
    name: Annotated[str | None, typer.Argument(help="One method, with its settings; all in a table if unset.")] = None,
    model: Annotated[
        str, typer.Option(help="The base of which parameters are counted: 'embedded', a folder, or a hub id.")
    ] = "embedded",
) -> None:
    """The ways to adapt a model: what trains, how much of it, and what becomes of the file."""
    from tsugiki.cli.tables import print_table
    from tsugiki.report.families import describe_method, methods_table

    if name is None:
        print_table(
            methods_table(model), f"trains: of {model}, with default settings", "tsugiki methods NAME says more"
        )
        return
    text, settings, notes = describe_method(name, model)
    typer.echo(text)
    if settings[1]:
        print_table(settings)
    for note in notes:
        typer.echo(note)
