"""`tsugiki adapters show`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.cells import cell_len

from tsugiki.cli.adapters.options import ADAPTER_HELP, Library
from tsugiki.language import _


def show_command(
    adapter: Annotated[str, typer.Argument(help=ADAPTER_HELP)],
    html: Annotated[Path | None, typer.Option(help="Also write an HTML page with plots to this file.")] = None,
    library: Library = None,
) -> None:
    """Show an adapter's settings, training run, results and samples, and the size of its update in each layer."""
    from tsugiki.adapters.library import adapter_folder
    from tsugiki.cli.tables import print_line, print_table
    from tsugiki.io.progress import ProgressDisplay
    from tsugiki.report.adapter import LAYERS_EXPLAINED, info_lines, inspect_adapter, tensors_table, write_adapter_page
    from tsugiki.report.formatting import describe_change
    from tsugiki.report.layers import kinds_table, layers_table
    from tsugiki.report.record_text import change_of_run, held_out_table
    from tsugiki.report.samples import shown_samples

    folder = adapter_folder(adapter, library)
    with ProgressDisplay().stage(_("layers"), None) as advance:
        report = inspect_adapter(folder, advance)
    for label, text in info_lines(report):
        print_line(f"{label}{' ' * max(1, 15 - cell_len(label))}{text}")
    for note in report.notes:
        print_line(_("note: {note}").format(note=note))
    record = report.record
    if record and len(record.evaluations) > 1:
        print_table(held_out_table(record), _("change: {change}").format(change=describe_change(change_of_run(record))))
    for when, prompt, text in shown_samples(record) if record else ():
        print_line(f"{when}: {prompt}{text.rstrip()}".replace("\n", "⏎"))
    if report.tensors:
        print_table(tensors_table(report.tensors))
    if report.layers:
        print_table(layers_table(report.layers))
        print_table(kinds_table(report.layers), _(LAYERS_EXPLAINED))
    if html:
        write_adapter_page(html, report)
        print_line(_("page: {path}").format(path=html))
