"""What is shown about a run or an adapter: a list of sections, which the terminal, pages and model cards render.

A section is a heading and parts. Each place takes the sections that it has room for, and renders every kind of part in
one way: `report.html`, `cli.terminal`, `hub.markdown`, and the JavaScript of the server's page, which gets `to_json`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from operator import itemgetter
from typing import Any, TypeAlias

from tsugiki.language import _
from tsugiki.report.table import WORD, Table

_LARGEST = 1e30  # matplotlib cannot place ticks near the largest floats
_MAX_POINTS = 200  # longer lines are thinned out
_SHORTEST_SAME = 4  # characters: less text in common between two samples is chance
_MOST_MARKED = 0.6  # of a text: where more than this is new, a mark says nothing

RIGHT, WRONG = "✓", "✗"

Row: TypeAlias = tuple[str, str]
"""A label and a text."""


@dataclass(frozen=True)
class Sentence:
    """A paragraph."""

    text: str


class Lead(Sentence):
    """The main result in a sentence."""


class Note(Sentence):
    """What is wrong, in a colour that warns. An ordinary fact is a `Sentence`."""


@dataclass(frozen=True)
class Lines:
    """Labels with texts, one below the other."""

    rows: Sequence[Row]


class Facts(Lines):
    """A few figures with labels, side by side."""


@dataclass(frozen=True)
class Code:
    """Commands or a program."""

    text: str
    language: str = ""
    """As Markdown names it."""


@dataclass(frozen=True)
class Series:
    """A line of a plot. Points that are not finite, or above 1e30, are left out."""

    name: str
    points: Sequence[tuple[float, float]]
    """(x, y)."""
    band: Sequence[tuple[float, float]] = ()
    """(low, high) at each point; empty for a line without a band."""
    colour: int | None = None
    """Number of one of the page's colours, from 0; by default the position of the line in the plot."""
    faint: bool = False
    """Whether the line is thin and pale, as the background of another one."""

    def drawn(self) -> list[tuple[float, ...]]:
        """Return (x, y), or (x, y, low, high) with a band, of the points that can be drawn, thinned out."""
        edges: Sequence[tuple[float, ...]] = self.band or [()] * len(self.points)
        rows = [(*point, *band) for point, band in zip(self.points, edges, strict=True)]
        return _thinned([row for row in rows if all(abs(value) < _LARGEST for value in row)])


@dataclass(frozen=True)
class Curves:
    """Lines over steps or other whole numbers."""

    caption: str
    series: Sequence[Series]
    kept: tuple[int, str] | None = None
    """The step that a run has kept, and what it is called."""

    def coloured(self) -> list[tuple[int, Series]]:
        """Return the lines that have points, with the numbers of their colours."""
        coloured = [(at if line.colour is None else line.colour, line) for at, line in enumerate(self.series)]
        return [(colour, line) for colour, line in coloured if line.drawn()]


class RankCurves(Curves):
    """Lines over ranks, which are powers of two as a rule."""


@dataclass(frozen=True)
class Samples:
    """What models wrote after a prompt. Two texts are side by side, and what is new in the second one is marked.

    Nothing is marked beside an expected answer, where a mark would look like a right one; nor where most is new.
    """

    prompt: str
    texts: Sequence[Row]
    """(label, text)."""
    expected: str = ""
    """The expected answer, if the prompt is a question."""

    @property
    def asked(self) -> list[Row]:
        """What stands above the texts: a label that ends in a space, where the language has one, and a text."""
        if not self.expected:
            return [(_("prompt: "), self.prompt)]
        return [(_("question: "), self.prompt), (_("expected: "), self.expected)]

    @cached_property
    def pieces(self) -> list[list[tuple[str, bool]]]:
        """The texts without white space at their ends, in pieces, each with whether it is new."""
        texts = [text.strip() for _label, text in self.texts]
        changed = _with_changes(*texts) if len(texts) == 2 and not self.expected else []
        new = sum(len(piece) for piece, is_new in changed if is_new)
        if not changed or new > _MOST_MARKED * len(texts[1]):
            return [[(text, False)] for text in texts]
        return [[(texts[0], False)], changed]


@dataclass(frozen=True)
class Folded:
    """Parts that are hidden until the reader asks for them; left out where nothing can be folded."""

    summary: str
    parts: "Sequence[Part]"


Part: TypeAlias = Sentence | Lines | Code | Curves | Samples | Folded | Table


@dataclass(frozen=True)
class Section:
    """A heading, which can be empty, and parts that have content."""

    name: str
    heading: str
    parts: Sequence[Part]


def answer_label(label: str, is_right: bool) -> str:
    """Return the label of an answer with a mark before it, which says whether the answer is right."""
    return f"{RIGHT if is_right else WRONG} {label}"


def section(name: str, heading: str, *parts: Part) -> Section:
    """Return a section with those of the parts that have content."""
    return Section(name, heading, [part for part in parts if _has_content(part)])


def selected(sections: Sequence[Section], *names: str) -> list[Section]:
    """Return the sections with these names."""
    return [section for section in sections if section.name in names]


def to_json(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """Return sections as JSON, in which every part names its kind."""
    return [
        {"name": section.name, "heading": section.heading, "parts": [_part_to_json(part) for part in section.parts]}
        for section in sections
    ]


def _has_content(part: Part) -> bool:
    match part:
        case Lines() | Table():
            return bool(part.rows)
        case Curves():
            return bool(part.coloured())
        case Samples():
            return bool(part.texts)
        case Folded():
            return any(map(_has_content, part.parts))
    return bool(part.text)


def _part_to_json(part: Part) -> dict[str, Any]:
    match part:
        case Table():
            fields = part.to_json()
        case Folded():
            fields = {"summary": part.summary, "parts": [_part_to_json(inner) for inner in part.parts]}
        case Curves():
            lines = [
                {"name": line.name, "points": line.drawn(), "colour": colour, "faint": line.faint}
                for colour, line in part.coloured()
            ]
            fields = {"caption": part.caption, "series": lines, "kept": part.kept}
        case Samples():
            labels = [label for label, _text in part.texts]
            fields = {"asked": part.asked, "texts": list(zip(labels, part.pieces, strict=True))}
        case _:
            fields = vars(part)
    return {"kind": type(part).__name__.lower(), **fields}


def _with_changes(before: str, after: str) -> list[tuple[str, bool]]:
    """Return the second text in pieces, each with whether the first one lacks it, by words or Japanese characters."""
    old, new = WORD.findall(before), WORD.findall(after)
    pieces = [("", False)]
    for kind, _from, _to, start, end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        text = "".join(new[start:end])
        is_new = kind != "equal" or len(text.strip()) < _SHORTEST_SAME
        if is_new == pieces[-1][1]:
            text = pieces.pop()[0] + text
        pieces.append((text, is_new))
    return [piece for piece in pieces if piece[0]]


def _thinned(rows: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Reduce rows to about `_MAX_POINTS`: the lowest and the highest of each stretch, so that peaks are kept."""
    if len(rows) <= _MAX_POINTS:
        return rows
    size = math.ceil(2 * len(rows) / _MAX_POINTS)
    stretches = [rows[at : at + size] for at in range(0, len(rows), size)]
    extremes = [choose(stretch, key=itemgetter(1)) for stretch in stretches for choose in (min, max)]
    return sorted({rows[0], rows[-1], *extremes})
