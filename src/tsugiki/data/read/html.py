"""Read the text of an HTML page or a chapter of an EPUB book; scripts, navigation and readings of ruby are left out."""

import re
from html.parser import HTMLParser

_MAX_DEPTH = 100  # nested elements that are left out
_SOURCE_BREAK = "\r"  # stands for a line break of the source, which is a space in the text
_SPACES = re.compile("[ \t\r]+")  # not the ideographic space, which begins Japanese paragraphs
_BETWEEN_JAPANESE = re.compile("(?<=[\u3001-\u9fff\uff01-\uffef])[ \t]*\r[ \t\r]*(?=[\u3001-\u9fff\uff01-\uffef])")
# A tag or a comment without an end hides the rest of the page, as in browsers. `close` would search for its end again
# at each `<` after it, which takes hours for a page of some hundred kB.
_UNFINISHED = re.compile("<[a-zA-Z/!?]")
_BLANK_LINES = re.compile("\n{3,}")
_READINGS = {"rt", "rp", "rtc"}  # of ruby; HTML may omit their end tags
_LEFT_OUT = {*_READINGS, "title", "script", "style", "noscript", "template", "nav", "svg", "math"}
_BLOCKS = {
    *("p", "div", "li", "tr", "hr", "blockquote", "section", "article", "aside", "figure", "figcaption", "pre", "body"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "dt", "dd", "ul", "ol", "dl", "table"),
}
_CELLS = {"td", "th"}


def html_text(html: str) -> str:
    """Return the text of a page: a line for each block, a line break for each `br`, a space between two cells."""
    page = _Page()
    page.feed(html)
    if not _UNFINISHED.match(page.rawdata):  # what is left after the last complete element
        page.close()
    text = _BETWEEN_JAPANESE.sub("", "".join(page.parts))
    lines = [_SPACES.sub(" ", line).strip(" ") for line in text.split("\n")]
    return _BLANK_LINES.sub("\n\n", "\n".join(lines)).strip("\n")


class _Page(HTMLParser):
    """Collects the text of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.left_out: list[str] = []
        """The open elements that are left out, the innermost last."""
        self.has_text = False
        """Whether the current line has text."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin an element."""
        if tag in _LEFT_OUT and len(self.left_out) < _MAX_DEPTH:
            self.left_out.append(tag)
        self._break(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin and end an element, such as <br/>."""
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        """End an element, and the elements in it that are still open."""
        if tag in self.left_out:
            del self.left_out[self.left_out.index(tag) :]
        elif tag == "ruby" and _READINGS.issuperset(self.left_out):
            self.left_out.clear()
        self._break(tag if tag != "br" else "")

    def handle_data(self, data: str) -> None:
        """Receive text."""
        if not self.left_out:
            self.parts.append(data.replace("\r", "").replace("\n", _SOURCE_BREAK))
            self.has_text = self.has_text or bool(data.strip(" \t\r\n"))

    def _break(self, tag: str) -> None:
        if tag == "br" or (tag in _BLOCKS and self.has_text):
            self.parts.append("\n")
            self.has_text = False
        elif tag in _CELLS and self.has_text:
            self.parts.append(" ")
