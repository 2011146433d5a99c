"""The results of several models or adapters on the same text, as a table."""

from collections.abc import Sequence

from tsugiki.language import _, counts
from tsugiki.report.formatting import describe_intervals, format_change, format_with_interval
from tsugiki.report.html import page
from tsugiki.report.page import in_frame
from tsugiki.report.sections import Lead, Note, section
from tsugiki.report.table import Table
from tsugiki.training.record.result import Evaluation, change_of_bits, warning_text


class Evaluations(dict[str, Evaluation]):
    """Name of a model, or of a model and an adapter -> its evaluation; shown as a table."""

    def __repr__(self) -> str:
        if not self:
            return _("no evaluations")
        table, notes = evaluation_table(list(self), list(self.values()))
        return "\n".join([table.to_text(), *notes])

    def _repr_html_(self) -> str:
        table, notes = evaluation_table(list(self), list(self.values()))
        height = 240 + 60 * len(table.rows) + 30 * len(notes)
        about, *more = notes
        shown = [
            section("result", "", Lead(about), *map(Note, more)),
            section("evaluations", _("Results"), table),
        ]
        return in_frame(page(_("Evaluation"), shown), height)


def _marked(cell: str, mark: str) -> str:
    """Append a mark to the figure in a cell, before the line with its interval, if any."""
    figure, line_break, interval = cell.partition("\n")
    return figure + mark + line_break + interval


def learned_note(name: str, result: Evaluation) -> str:
    """Return a note on how much of the text the evaluated model or adapter was trained on."""
    documents = counts.documents(len(result.documents))
    known = _("{same:,} of {documents}").format(same=result.learned, documents=documents)
    if result.nearly_learned and not result.learned:
        known = _("nearly the same text as {near:,} of {documents}").format(
            near=result.nearly_learned, documents=documents
        )
    elif result.nearly_learned:
        known = _("{known}, and nearly the same text as {near:,} others").format(
            known=known, near=result.nearly_learned
        )
    return _("* {name} has learned {known}: its figures do not tell how good it is on new text").format(
        name=name, known=known
    )


def evaluation_table(names: Sequence[str], results: Sequence[Evaluation]) -> tuple[Table, list[str]]:
    """Return a table with a row for each model, and notes on it, one line each; changes are relative to the first."""
    headers = [_("model"), _("loss"), _("perplexity"), _("bits/char"), _("change of bits"), _("tokens")]
    first, rows, notes = results[0], [], []
    for name, result in zip(names, results, strict=True):
        mark = " *" if result.learned or result.nearly_learned else ""
        rows.append(
            [
                name,
                _marked(format_with_interval(result.loss, result.loss_interval), mark),
                f"{result.perplexity:,.4g}{mark}",
                _marked(format_with_interval(result.bits_per_char, result.bits_per_char_interval), mark),
                "–" if result is first else format_change(change_of_bits(first, result)),
                f"{result.tokens:,}",
            ]
        )
        if mark:
            notes.append(learned_note(name, result))
        if result.warning:
            notes.append(f"{name}: {warning_text(result)}")
        if result.skipped_records:
            skipped = counts.examples(result.skipped_records)
            message = _("{name}: longer than the context, and not scored: {skipped}")
            notes.append(message.format(name=name, skipped=skipped))
        if result.split_windows:
            windows = counts.windows(result.split_windows)
            message = _("{name}: longer than the context, and scored in pieces: {windows}")
            notes.append(message.format(name=name, windows=windows))
    groups = len(first.independent)
    message = _("{characters} of {documents} in {windows}")
    if groups < len(first.documents):
        message = _("{characters} of {documents} ({groups:,} groups of near-duplicates or single ones) in {windows}")
    about = (
        message.format(
            characters=counts.characters(first.characters),
            documents=counts.documents(len(first.documents)),
            groups=groups,
            windows=counts.windows(first.windows),
        ),
        describe_intervals(groups),
        _("between models with different tokenizers, compare only bits per character"),
    )
    return Table(headers, rows), [*about, *notes]
