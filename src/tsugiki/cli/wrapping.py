"""Wrap text to the width of a terminal, also Japanese, which has no spaces between words.

rich breaks lines only at spaces. It would end a Japanese line long before its edge, or cut it off.
"""

import re

from rich.cells import cell_len

_PIECE = re.compile(r"\s+|[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]|[^\s\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]+")
_NOT_FIRST = frozenset("、。，．：；！？）」』】〉》ーぁぃぅぇぉっゃゅょァィゥェォッャュョ々〜%")
"""Characters that do not begin a line."""
_NOT_LAST = frozenset("（「『【〈《")
"""Characters that do not end a line."""


def wrap(text: str, width: int) -> list[str]:
    """Return the lines of a text. `width` is in columns; a Japanese character takes two."""
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for piece in _pieces(paragraph):
            if line and cell_len(line + piece.rstrip()) > width:
                lines.append(line.rstrip())
                line = piece.lstrip()
            else:
                line += piece
        lines.append(line.rstrip())
    return lines


def has_wide(text: str) -> bool:
    """Return whether a text has characters that are two columns wide; a line can break between them."""
    return cell_len(text) > len(text)


def _pieces(text: str) -> list[str]:
    """Return the parts of a line within which it must not break."""
    pieces: list[str] = []
    for piece in _PIECE.findall(text):
        if pieces and (piece[0] in _NOT_FIRST or pieces[-1][-1] in _NOT_LAST):
            pieces[-1] += piece
        else:
            pieces.append(piece)
    return pieces
