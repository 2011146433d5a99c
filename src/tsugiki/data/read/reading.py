"""Facts about how the files of a data set were read, and the sentences that report them to the user."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePath

from tsugiki.errors import summarise_list
from tsugiki.language import _, ngettext


@dataclass
class Reading:
    """Facts that `files.read_records` collects; JSON can represent them."""

    files: list[str] = field(default_factory=list)
    """The files and data sets that are read, in order."""
    works: list[str] = field(default_factory=list)
    """Files of Aozora Bunko, from which notation was removed."""
    unresolved: int = 0
    """The number of characters in these files that have no code and became 〓."""
    annotated: list[str] = field(default_factory=list)
    """Other texts with annotations in Aozora Bunko's notation, which were kept."""
    empty: list[str] = field(default_factory=list)
    """Files without text."""
    passed_over: list[str] = field(default_factory=list)
    """Files of another kind in a folder or a zip."""
    without_fields: list[str] = field(default_factory=list)
    """Tables in a folder or a zip that have none of the known fields."""

    def notes(self) -> list[str]:
        """Return one sentence for each fact that a user should know."""
        found = []
        if self.works:
            count = len(self.works)
            found.append(
                ngettext(
                    "{names}: a text of Aozora Bunko; header, footer, ruby and annotations are removed",
                    "{names}: texts of Aozora Bunko; headers, footers, ruby and annotations are removed",
                    count,
                ).format(names=summarise_list(self.works))
            )
        if self.unresolved:
            found.append(
                ngettext(
                    "{count:,} character of these has no code, and became 〓",
                    "{count:,} characters of these have no code, and became 〓",
                    self.unresolved,
                ).format(count=self.unresolved)
            )
        if self.annotated:
            found.append(
                _(
                    "{names}: annotations such as ［＃５字下げ］ are learned as they are, because the text has neither "
                    "the header nor the footer of Aozora Bunko"
                ).format(names=summarise_list(self.annotated))
            )
        if self.empty:
            found.append(_("{names}: empty, so nothing of it is used").format(names=summarise_list(self.empty)))
        if self.passed_over:
            found.append(
                ngettext(
                    "{count:,} file of another kind is passed over ({kinds})",
                    "{count:,} files of other kinds are passed over ({kinds})",
                    len(self.passed_over),
                ).format(count=len(self.passed_over), kinds=_kinds(self.passed_over))
            )
        if self.without_fields:
            found.append(
                _("{names}: passed over, because no known field is in it").format(
                    names=summarise_list(self.without_fields)
                )
            )
        return found


def _kinds(names: list[str]) -> str:
    """Return the suffixes of files with their counts; the name of a file that has no suffix."""
    counts = Counter(PurePath(name).suffix.lower() or PurePath(name).name for name in names)
    return summarise_list([f"{kind} {count:,}" if count > 1 else kind for kind, count in counts.most_common()])
