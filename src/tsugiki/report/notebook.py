"""Pages inside a notebook. A frame separates the styles of the page from those of the notebook."""

from pathlib import Path

from tsugiki.language import _
from tsugiki.report.page import in_frame, page
from tsugiki.report.preview import to_html
from tsugiki.report.record_text import summary_sentence
from tsugiki.report.run import REPORT_FILE, record_sections
from tsugiki.training.record import RunRecord
from tsugiki.training.workflows.preview import Preview


class ShownRecord(RunRecord):
    """The record of a run, which a notebook shows as a small report: its result, curves and samples."""

    def _repr_html_(self) -> str:
        folder = self.config.out
        whole = Path(folder) / REPORT_FILE if folder else None
        curves_and_samples = record_sections(self)[:2]
        notes = [_("the whole report: {path}").format(path=whole)] if whole and whole.is_file() else []
        return in_frame(page(folder or _("run"), summary_sentence(self), curves_and_samples, notes))


class ShownPreview(Preview):
    """A preview, which a notebook shows as its page."""

    def _repr_html_(self) -> str:
        return in_frame(to_html(self))
