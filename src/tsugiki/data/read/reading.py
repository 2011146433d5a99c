"""Facts about how the files of a data set were read, and the sentences that report them to the user."""

from collections import Counter
from collections.abc import Mapping
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

    def new_names(self, now: "Reading") -> dict[str, str]:
        """Return for each file of this reading its name in another reading of the same content."""
        return dict(zip(self.files, now.files, strict=False))

    def renamed(self, now: "Reading") -> "Reading":
        """Return the facts of this reading with the files' names in `now`, another reading of the same content.

        Files that were passed over are not a part of the content, except those in a zip, so they are taken from `now`.
        """
        if not now.files:
            return self
        names = self.new_names(now)
        works, annotated, empty, without_fields, passed_over = (
            [renamed(name, names) for name in found]
            for found in (self.works, self.annotated, self.empty, self.without_fields, self.passed_over)
        )
        zips = tuple(f"{name}/" for name in now.files if name.lower().endswith(".zip"))
        passed_over = [*now.passed_over, *(name for name in passed_over if name.startswith(zips))]
        return Reading(
            now.files,
            works,
            self.unresolved,
            annotated,
            empty,
            list(dict.fromkeys(passed_over)),
            without_fields,
        )

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


def renamed(name: str, names: Mapping[str, str]) -> str:
    """Replace the file at the beginning of the name of a record (`file`, `file:line`, `file/member`, `file (its end)`).

    Args:
        name: the name; it is not changed if it begins with none of the files.
        names: file -> its new name.
    """
    for end in range(len(name), 0, -1):
        if name[end : end + 1] in ("", ":", "/", " ") and name[:end] in names:
            return names[name[:end]] + name[end:]
    return name


def _kinds(names: list[str]) -> str:
    """Return the suffixes of files with their counts; the name of a file that has no suffix."""
    counts = Counter(PurePath(name).suffix.lower() or PurePath(name).name for name in names)
    return summarise_list([f"{kind} {count:,}" if count > 1 else kind for kind, count in counts.most_common()])
