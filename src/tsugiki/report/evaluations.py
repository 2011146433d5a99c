"""The results of several models or adapters on the same text, pairs of answers or questions, as a table."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from tsugiki.language import _, counts
from tsugiki.report.formatting import describe_intervals, format_change, format_with_interval
from tsugiki.report.html import in_frame, whole_page
from tsugiki.report.sections import Lead, Sentence, section
from tsugiki.report.table import Table
from tsugiki.training.record.result import Answers, Evaluation, change_of_bits, change_of_share, warning_text

if TYPE_CHECKING:
    from tsugiki.training.score.targets import EvaluationTarget

Draw: TypeAlias = Callable[[Sequence[str], Sequence[Any]], tuple[Table, list[str]]]
"""Returns a table with a row for each name and result, and notes; changes are relative to the first result."""


class Results(dict[str, Any]):
    """Name of a model, or of a model and an adapter -> its result; shown as a table."""

    def __init__(
        self, targets: "Sequence[EvaluationTarget]", results: Iterable[Any], draw: Draw, notes: Sequence[str] = ()
    ) -> None:
        """Take the results of the targets, in the same order, what shows them, and notes on the data."""
        super().__init__(zip(map(str, targets), results, strict=True))
        self.targets, self.draw, self.notes = targets, draw, notes

    def table(self) -> tuple[Table, list[str]]:
        """Return the table and the notes."""
        table, notes = self.draw(list(self), list(self.values()))
        return table, [*notes, *self.notes]

    def json_lines(self) -> Iterator[str]:
        """Yield the result of each target in one line of JSON."""
        for target in self.targets:
            names = {"model": target.model, "adapter": target.adapter_name or None}
            yield json.dumps(names | self[str(target)].model_dump(mode="json"))

    def __repr__(self) -> str:
        table, notes = self.table()
        return "\n".join([table.to_text(), *notes])

    def _repr_html_(self) -> str:
        table, (about, *more) = self.table()
        height = 270 + 60 * len(table.rows) + 30 * len(more)
        shown = [
            section("result", "", Lead(about), *map(Sentence, more)),
            section("evaluations", _("Results"), table),
        ]
        return in_frame(whole_page(_("Evaluation"), shown), height)


def answers_table(names: Sequence[str], results: Sequence[Answers]) -> tuple[Table, list[str]]:
    """Return a table of the shares of correct answers, and a note; changes are relative to the first model."""
    first, rows = results[0], []
    for name, result in zip(names, results, strict=True):
        low, high = result.share_interval
        change, (least, most) = change_of_share(first, result)
        rows.append(
            [
                name,
                _("a conversation") if result.as_conversation else _("plain text"),
                _("{done:,} of {planned:,}", done=result.correct, planned=result.questions),
                f"{result.share:.1%} [{low:.1%}, {high:.1%}]",
                "–" if result is first else f"{100 * change:+.1f} [{100 * least:+.1f}, {100 * most:+.1f}]",
            ]
        )
    headers = [_("model"), _("asked as"), _("correct"), _("share"), _("change, percentage points")]
    note = _(
        "95 % intervals in brackets; that of the change is for the same questions. {flag:json} prints every answer"
    )
    return Table(headers, rows), [note]


def evaluation_table(names: Sequence[str], results: Sequence[Evaluation]) -> tuple[Table, list[str]]:
    """Return a table with a row for each model, and notes on it, one line each; changes are relative to the first."""
    headers = [_("model"), _("loss"), _("perplexity"), _("bits/char"), _("change of bits"), _("tokens")]
    first, rows, notes = results[0], [], []
    for name, result in zip(names, results, strict=True):
        rows.append(
            [
                name,
                format_with_interval(result.loss, result.loss_interval),
                f"{result.perplexity:,.4g}",
                format_with_interval(result.bits_per_char, result.bits_per_char_interval),
                "–" if result is first else format_change(change_of_bits(first, result)),
                f"{result.tokens:,}",
            ]
        )
        if result.warning:
            notes.append(f"{name}: {warning_text(result)}")
        if result.skipped_records:
            skipped = counts.examples(result.skipped_records)
            notes.append(_("{name}: longer than the context, and not scored: {skipped}", name=name, skipped=skipped))
        if result.split_windows:
            windows = counts.windows(result.split_windows)
            notes.append(
                _("{name}: longer than the context, and scored in pieces: {windows}", name=name, windows=windows)
            )
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
