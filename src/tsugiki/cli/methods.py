"""`tsugiki methods`."""

from typing import Annotated

import typer


def methods_command(
    name: Annotated[
        str | None, typer.Argument(help="Describe this method and its settings; without it, list all methods.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Model whose parameters are counted: 'embedded', a folder, or a hub id.")
    ] = "embedded",
) -> None:
    """List the methods to adapt a model, or describe one of them."""
    from tsugiki.cli.tables import print_table
    from tsugiki.report.methods import describe_method, methods_table

    if name is None:
        print_table(
            methods_table(model),
            f"trainable parameters: of {model}, with default settings",
            "tsugiki methods NAME describes one method",
        )
        return
    text, settings, notes = describe_method(name, model)
    typer.echo(text)
    if settings[1]:
        print_table(settings)
    for note in notes:
        typer.echo(note)
