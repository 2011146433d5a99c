"""Convert Aozora Bunko's notation (青空文庫注記形式) to plain text.

`read_work` converts the bytes of one zip of the library, `plain_text` a piece of text with notation:

    ｜停車場《ステーション》の灯      停車場の灯    ruby: the base text is kept, the reading is removed
    駅［＃「駅」に傍点］              駅            annotations are removed, also nested ones
    ※［＃歌記号、1-3-28］             〽            a character by its men-ku-ten (面区点) of JIS X 0213, or U+XXXX
    ※［＃「口＋世」、12-3］           〓            a character without a code, only page and line: 〓, counted
    〔cafe'〕                        café          accents that are written in ASCII; other 〔…〕 are kept
    だん／＼、ほの／″＼               だん〳〵、ほの〴〵

The header (title, author, legend) and the footer (from 底本：) are removed; title and author are returned separately.
The notation is described at https://www.aozora.gr.jp/annotation/
"""

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from tsugiki.errors import TsugikiError
from tsugiki.io.archives import read_only_member
from tsugiki.language import _

GETA = "〓"

_MAX_SIZE = 8_000_000  # bytes; the longest work of 4,450 has 1.2 million
_MAX_HEADER = 100  # lines

Encoding = Literal["shift_jis", "utf-8"]


@dataclass(frozen=True)
class CleanText:
    """A work without notation; `unresolved` is the number of characters that became 〓."""

    title: str
    author: str
    text: str
    unresolved: int


def read_work(data: bytes, name: str = "the zip", encoding: Encoding | None = None) -> CleanText:
    """Read the clean text, the title and the author of one work from a zip with one text, in UTF-8 or Shift_JIS.

    `name` is that of the zip, for errors; `encoding` is what the index gives for the text; None: it is detected.
    """
    _name, content = read_only_member(data, name, ".txt", _MAX_SIZE, _("download it again, or exclude this work"))
    return clean_work(_decode(content, name, encoding), name)


def read_text_file(data: bytes, name: str, encoding: Encoding | None = None) -> CleanText:
    """Read the clean text, the title and the author of a work that is not in a zip; arguments as for `read_work`."""
    source = _decode(data, name, encoding)
    if not is_work(source):
        raise TsugikiError(
            "{name}: neither the header nor the footer of Aozora Bunko is in it; exclude this file", name=name
        )
    return clean_work(source, name)


def clean_work(source: str, name: str) -> CleanText:
    """Return the clean text, the title and the author of a work, given as a text with LF as line ends."""
    header, body = _split(source)
    title, author = title_and_author(header)
    text, unresolved = plain_text(body)
    if not text:
        raise TsugikiError("{name}: no text between the header and the footer; exclude this work", name=name)
    return CleanText(title, author, text, unresolved)


def is_work(source: str) -> bool:
    """Return whether a text is a work as Aozora Bunko distributes it.

    Such a work has the legend between two rules of hyphens near its beginning; or a footer (底本：) near its end, and
    also the library's name in the footer, an annotation ［＃…］ or ruby. Other texts hardly ever have both.
    """
    source = source.lstrip("\n")
    legend = _LEGEND_START.search(source, 0, _MAX_HEADER * 100)
    if legend and source.startswith("-", legend.start()) and _LEGEND_END.search(source, legend.end()):
        return True
    end = source[-_MAX_FOOTER:]
    books = [mark for mark in _FOOTER.finditer(end) if mark[2]]
    if not books:
        return False
    body = source[: len(source) - len(end) + books[0].start()]
    return "青空文庫" in end[books[0].start() :] or bool(_ANNOTATION.search(body) or _READING.search(body))


def has_annotations(source: str) -> bool:
    """Return whether a text has annotations in the library's notation, such as layout, emphasis marks or headings."""
    return _KNOWN_ANNOTATION.search(source) is not None


def standard_characters(text: str) -> str:
    """Replace Microsoft's characters in a text that was decoded as cp932 by those of Shift_JIS, as `read_work` does."""
    return text.translate(_VENDOR)


def plain_text(source: str) -> tuple[str, int]:
    """Return the text without notation, and the number of characters that became 〓 because they have no code."""
    unresolved = 0

    def read(match: re.Match[str]) -> str:
        nonlocal unresolved
        marks, inside = match.groups()
        if not marks:
            return ""
        character = _character(inside)
        if character is None:
            unresolved += len(marks)  # ※※［＃…］ describes two characters
            return GETA * len(marks)
        return character

    text = _without_named_captions(_without_captions(source))
    text = _LAYOUT_LINE.sub("", text)
    # Ruby must be removed before references are read: 《》 that belong to the text are written as references.
    text = _BASE.sub(r"\1", text)
    text = _RUBY.sub("", text)
    text = _ANNOTATION.sub(read, text)
    text = _NOTE_MARK.sub("", text)
    text = _ACCENTED.sub(_without_brackets, text)
    text = text.replace("／＼", "〳〵").replace("／″＼", "〴〵").replace("／゛＼", "〴〵")
    text = "\n".join(line.rstrip(" \t　") for line in text.split("\n"))
    text = re.sub(r"\n{4,}", "\n\n", text)
    return text.strip("\n"), unresolved


def guess_kana(text: str) -> Literal["modern", "old"]:
    """Guess the kana orthography by counting frequent spellings that only one of the two has (だった or だつた)."""
    sample = text[:20_000]
    return "old" if len(_OLD_KANA.findall(sample)) > len(_MODERN_KANA.findall(sample)) else "modern"


_OLD_KANA = re.compile("[ゐゑ]|[だなかあ]つ[たて]|やう|さう|せう|[いふ思言]ふ|だらう|へる|かへ")
_MODERN_KANA = re.compile("いる|[だなかあ]っ[たて]|よう|そう|しょう|[い思言]う|だろう|える|かえ")


# Marks ---------------------------------------------------------------------------------------------------

# Annotations can be nested: 「…」 in an annotation can contain a character reference, which is an annotation too.
_INSIDE = r"[^［］\n]*+"
for _round in range(3):
    _INSIDE = rf"(?:[^［］\n]++|［{_INSIDE}］)*+"
# After ※, an annotation is a character reference. The lookbehind and the possessive *+ keep a long row of ※ linear.
_ANNOTATION = re.compile(rf"(?<!※)(※*+)［＃({_INSIDE})］")
# A line that contains only layout annotations is removed with its line end.
_LAYOUT_LINE = re.compile(rf"^[ 　]*(?:［＃{_INSIDE}］)+[ 　]*\n", re.M)
_CAPTION_START = re.compile(r"［＃(?:ここから)?キャプション］")
_CAPTION_END = re.compile(r"［＃(?:ここで)?キャプション終わり］")
_NAMED_CAPTION = re.compile(r"［＃「([^\n［］]+)」はキャプション］")
_BASE = re.compile(r"｜([^｜《》\n]*)《[^《》\n]*》")
# At the start of a line or after an opening bracket there is no base text, so 《》 are quotation marks there.
_RUBY = re.compile(r"(?<=[^\n　「『（])《[^《》\n]*》")
# Marks of notes by the volunteer who typed the text.
_NOTE_MARK = re.compile(r"［※\d+］")
_MEN_KU_TEN = re.compile(r"(?:第[34]水準 ?)?([12])-(\d{1,2})-(\d{1,2})")
_UNICODE = re.compile(r"U[+-]([0-9A-Fa-f]{4,6})")


def _without_captions(text: str) -> str:
    """Remove captions with the marks around them. A caption that is not ended is kept."""
    kept, position = [], 0
    while (start := _CAPTION_START.search(text, position)) and (end := _CAPTION_END.search(text, start.end())):
        kept.append(text[position : start.start()])
        position = end.end()
    return "".join([*kept, text[position:]])


def _without_named_captions(text: str) -> str:
    """Remove captions that are repeated in the mark after them, with the mark."""
    kept, position = [], 0
    for mark in _NAMED_CAPTION.finditer(text):
        start = mark.start() - len(mark[1])
        if start >= position and text.startswith(mark[1], start):
            kept.append(text[position:start])
            position = mark.end()
    return "".join([*kept, text[position:]])


def _character(reference: str) -> str | None:
    """Return the character that the inside of ※［＃…］ describes by a code, or None."""
    for part in reversed(reference.split("、")):
        if code := _MEN_KU_TEN.fullmatch(part):
            plane, row, cell = map(int, code.groups())
            try:
                # EUC encodes row and cell as 0xA0 + n, with a single shift before characters of plane 2.
                return (b"\x8f" * (plane - 1) + bytes((0xA0 + row, 0xA0 + cell))).decode("euc_jis_2004")
            except ValueError:  # no such cell, or none assigned
                return None
        if code := _UNICODE.fullmatch(part):
            point = int(code[1], 16)
            is_control = point <= 0x10FFFF and unicodedata.category(chr(point)) in ("Cc", "Cs")
            return chr(point) if point <= 0x10FFFF and not is_control else None
    return None


def _accents() -> dict[str, str]:
    """Return pairs such as e' with the accented letters that they represent."""
    marks = {
        "`": ("\u0300", "aeiou"),
        # After a consonant, an apostrophe is much more often French elision (l'e'tude) than a Polish accent (n').
        "'": ("\u0301", "aeiouy"),
        "^": ("\u0302", "aeioucghjsw"),
        "~": ("\u0303", "aeinou"),
        ":": ("\u0308", "aeiouy"),
        "_": ("\u0304", "aeiou"),
        "&": ("\u030a", "au"),
        ",": ("\u0327", "cst"),
    }
    table = {"ae&": "æ", "AE&": "Æ", "oe&": "œ", "OE&": "Œ", "s&": "ß"}
    table |= {"o/": "ø", "O/": "Ø", "d/": "đ", "D/": "Đ", "l/": "ł", "L/": "Ł", "h/": "ħ", "H/": "Ħ"}
    table |= {"!@": "¡", "?@": "¿"}
    for mark, (combining, letters) in marks.items():
        for letter in letters + letters.upper():
            table[letter + mark] = unicodedata.normalize("NFC", letter + combining)
    return table


_ACCENTS = _accents()
# A comma is a cedilla only inside a word: "franc,ais" is français, but "mots, puis" is a list.
_PAIR = re.compile(r"(?:[aoAO][eE]&|[A-Za-z][`'^~:_&/]|[!?]@|[cstCST],(?=[a-z]))")
_ACCENTED = re.compile(r"〔([^〔〕\n]*)〕")


def _without_brackets(match: re.Match[str]) -> str:
    """Return the inside of 〔…〕 with accented letters, or the whole match if it contains no accents."""
    composed = _PAIR.sub(lambda pair: _ACCENTS.get(pair[0], pair[0]), match[1])
    return match[0] if composed == match[1] else composed


# The file ------------------------------------------------------------------------------------------------

_RULE = r"-{9,}[ 　]*\n"
_LEGEND_START = re.compile(rf"^(?:{_RULE}【テキスト中に現れる記号について】|［表記について］)", re.M)
_LEGEND_END = re.compile(rf"^{_RULE}", re.M)
_FOOTER = re.compile(rf"^({_RULE})?(?:［＃本文終わり］|([ 　]*(?:翻訳の)?底本[：:])|●?入力者注$)", re.M)
_MAX_FOOTER = 4000  # characters
_READING = re.compile(r"[々〆ヵヶ\u3400-\u9fff]《[ぁ-ヶー]{1,40}》")
_KNOWN_ANNOTATION = re.compile(
    r"［＃[^［］\n]{0,80}(?:字下げ|傍点|傍線|見出し|改ページ|改丁|改段|地付き|字上げ|字詰め|太字|縦中横|罫囲み|水準\d-)"
)
_MAX_FOOTER_GAP = 1000  # characters between the source books that a footer names
# Code points of Microsoft's cp932 -> the characters that Shift_JIS defines.
_VENDOR = str.maketrans("～∥－￠￡￢", "〜‖−¢£¬")


def _decode(data: bytes, name: str, encoding: Encoding | None) -> str:
    # Text in the other encodings is invalid UTF-8 from its first kanji on.
    for codec in ("utf-8-sig", "shift_jis", "cp932"):
        try:
            text = data.decode(codec)
        except UnicodeDecodeError:
            continue
        found: Encoding = "utf-8" if codec == "utf-8-sig" else "shift_jis"
        if encoding not in (None, found) and not data.isascii():
            raise TsugikiError(
                "{name}: the index says {encoding}, the text is {found}; download both again",
                name=name,
                encoding=encoding,
                found=found,
            )
        if codec == "cp932":
            text = text.translate(_VENDOR)
        return text.replace("\r\n", "\n").replace("\r", "\n")
    raise TsugikiError("{name}: the text is neither Shift_JIS nor UTF-8; convert it to one of them", name=name)


def _split(source: str) -> tuple[list[str], str]:
    """Return the lines of the header (title and author), and the body."""
    source = source.lstrip("\n")
    end = _footer_start(source)
    legend = _LEGEND_START.search(source, 0, end)
    legend_end = legend and _LEGEND_END.search(source, legend.end(), end)
    if legend and legend_end:
        return source[: legend.start()].split("\n"), source[legend_end.end() : end]
    # Without a legend, the header is the first paragraph, or the first two if both are single lines.
    blocks = re.split(r"\n{2,}", source[:end], maxsplit=2)
    taken = 2 if len(blocks) == 3 and "\n" not in blocks[0] + blocks[1] else 1
    return "\n".join(blocks[:taken]).split("\n"), "\n\n".join(blocks[taken:])


def _footer_start(source: str) -> int:
    """Return the position at which the footer begins; the length of the text if there is none.

    A line of the body can begin with 底本： too. Therefore the footer begins at the last such line, or at an earlier
    one that follows a blank line or a rule, if only a short text is between them.
    """
    start, found = len(source), False
    for mark in reversed(list(_FOOTER.finditer(source))):
        rule, book = mark.groups()
        if book and found:
            line_before = source[source.rfind("\n", 0, max(mark.start() - 1, 0)) + 1 : mark.start()]
            if start - mark.end() > _MAX_FOOTER_GAP or not (rule or not line_before.strip()):
                continue
        start, found = mark.start(), found or book is not None
    return start


def title_and_author(header: list[str]) -> tuple[str, str]:
    """Return the title with its subtitles, and the author, from the lines of a header.

    The author is the last line before the translator's line. The title in the original language is left out.
    """
    lines = [line for raw in header[:_MAX_HEADER] if (line := plain_text(raw)[0].strip())]
    if not lines:
        return "", ""
    title, *rest = lines
    rest = [line for line in rest if not _TRANSLATOR.search(line)]
    if not rest:
        return title, ""
    *subtitles, author = rest
    if _JAPANESE.search(title):
        subtitles = [line for line in subtitles if _JAPANESE.search(line)]
    return "　".join([title, *subtitles]), _EDITOR.sub("", author)


_TRANSLATOR = re.compile(r"(?<!編)訳$|校訂$|^Translated by ")
_EDITOR = re.compile(r"(?:編訳?|著)$")
_JAPANESE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")
