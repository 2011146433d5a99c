"""Read a large JSON file one value at a time."""

import json
import re
from collections.abc import Iterator
from typing import IO, Any

from tsugiki.io.json import check_depth, integer
from tsugiki.language import _

_CHUNK = 1 << 20  # characters
_MAX_VALUE = 1 << 26  # characters
_DECODER = json.JSONDecoder(parse_int=integer)
_SPACE = re.compile(r"[ \t\r\n]*")


def iterate_json(file: IO[str]) -> Iterator[Any]:
    """Yield the elements of a JSON array, or JSON values that follow each other.

    Args:
        file: a text file at its beginning.

    Raises:
        ValueError: the file has another content, or a value has more than 64 million characters or exceeds the limits
            of `parse_json`.
    """
    text = _Text(file)
    if text.peek() != "[":
        while text.peek():
            yield text.value()
        return
    text.position += 1
    mark = text.peek()
    while mark != "]":
        yield text.value()
        mark = text.peek()
        if mark not in (",", "]"):
            raise ValueError(_("a comma or ] is missing after an element") if mark else _("it ends in the middle"))
        text.position += mark == ","
    text.position += 1
    if text.peek():
        raise ValueError(_("text follows the array"))


class _Text:
    """The part of a file that is in memory, and the current position in it."""

    def __init__(self, file: IO[str]) -> None:
        self.file, self.text, self.position, self.ended = file, "", 0, False

    def peek(self) -> str:
        """Skip white space, and return the next character; empty at the end."""
        while True:
            space = _SPACE.match(self.text, self.position)
            assert space
            self.position = space.end()
            if self.position < len(self.text) or self.ended:
                return self.text[self.position : self.position + 1]
            self._read_on()

    def value(self) -> Any:
        """Return the value that begins at the next character, and move the position behind it."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.position)
            except RecursionError as error:
                raise ValueError(_("it is nested too deeply")) from error
            except json.JSONDecodeError as error:
                if self.ended:
                    at_end = error.pos >= len(self.text.rstrip())
                    raise ValueError(_("it ends in the middle") if at_end else error.msg) from error
            else:
                if self.ended or not self._may_go_on(value, end):
                    check_depth(value)
                    self.position = end
                    return value
            if len(self.text) - self.position > _MAX_VALUE:
                raise ValueError(_("a value has more than {most:,} characters, or is no JSON").format(most=_MAX_VALUE))
            self._read_on()

    def _may_go_on(self, value: Any, end: int) -> bool:
        """Return whether a value that ends at `end` may be the beginning of a longer number."""
        return isinstance(value, int | float) and self.text[end : end + 1] in ("", ".", "e", "E", "+", "-")

    def _read_on(self) -> None:
        """Read at least as many characters as are in memory, so that a long value is parsed only a few times."""
        left = self.text[self.position :]
        new = self.file.read(max(_CHUNK, len(left)))
        self.text, self.position, self.ended = left + new, 0, not new
