"""`tsugiki methods`."""

from typing import Annotated

import typer

from tsugiki.language import _


def methods_command(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Describe this method and its settings; 'targets': list the layers that LoRA grafts by default; "
            "without it, list all methods."
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Model whose parameters or layers are counted: 'embedded', a folder, or a hub id.")
    ] = "embedded",
) -> None:
    """List the methods to adapt a model, describe one of them, or list the layers that LoRA grafts."""
    from tsugiki.cli.libraries import import_libraries

    import_libraries("tsugiki.report.methods")
    from tsugiki.cli.tables import print_table
    from tsugiki.report.methods import describe_method, methods_table

    if name is None:
        print_table(
            methods_table(model),
            _("trainable parameters: of {model}, with default settings").format(model=model),
            _("tsugiki methods NAME describes one method"),
            _("tsugiki methods targets lists the layers that LoRA grafts"),
        )
        return
    if name == "targets":
        from tsugiki.report.targets import targets_table

        table, lines = targets_table(model)
        print_table(table, *lines)
        return
    text, settings, notes = describe_method(name, model)
    typer.echo(text)
    if settings[1]:
        print_table(settings)
    for note in notes:
        typer.echo(note)
