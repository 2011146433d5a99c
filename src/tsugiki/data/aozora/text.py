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

import io
import lzma
import re
import unicodedata
import zipfile
import zlib
from dataclasses import dataclass
from typing import Literal

from tsugiki.errors import TsugikiError

GETA = "〓"

Encoding = Literal["shift_jis", "utf-8"]


@dataclass(frozen=True)
class CleanText:
    """A work without notation; `unresolved` is the number of characters that became 〓."""

    title: str
    author: str
    text: str
    unresolved: int


def read_work(data: bytes, name: str = "the zip", encoding: Encoding | None = None) -> CleanText:
    """Read the clean text, the title and the author of one work.

    Args:
        data: a zip that contains one text, in UTF-8 or Shift_JIS (cp932 if necessary).
        name: the name of the zip, for errors.
        encoding: the encoding that the index gives for the text; None detects it.

    Raises:
        TsugikiError: the zip is damaged, does not contain exactly one text, or the text has another encoding.
    """
    header, body = _split(_decode(_unzip(data, name), name, encoding))
    title, author = title_and_author(header)
    text, unresolved = plain_text(body)
    if not text:
        raise TsugikiError(f"{name}: no text between the header and the footer; exclude this work")
    return CleanText(title, author, text, unresolved)


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

    # Ruby must be removed first: 《》 that belong to the text are written as character references.
    text = source
    if "キャプション］" in text:  # rare, and the patterns are slow
        text = _NAMED_CAPTION.sub("", _CAPTION.sub("", text))
    text = _LAYOUT_LINE.sub("", text)
    text = _BASE.sub(r"\1", text)
    text = _RUBY.sub("", text)
    text = _ANNOTATION.sub(read, text)
    text = _NOTE_MARK.sub("", text)
    text = _ACCENTED.sub(_without_brackets, text)
    text = text.replace("／＼", "〳〵").replace("／″＼", "〴〵").replace("／゛＼", "〴〵")
    text = re.sub(r"[ \t　]+$", "", text, flags=re.M)
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
for _ in range(3):
    _INSIDE = rf"(?:[^［］\n]++|［{_INSIDE}］)*+"
# After ※, an annotation is a character reference.
_ANNOTATION = re.compile(rf"(※*)［＃({_INSIDE})］")
# A line that contains only layout annotations is removed with its line end.
_LAYOUT_LINE = re.compile(rf"^[ 　]*(?:［＃{_INSIDE}］)+[ 　]*\n", re.M)
_CAPTION = re.compile(r"［＃(?:ここから)?キャプション］.*?［＃(?:ここで)?キャプション終わり］", re.S)
_NAMED_CAPTION = re.compile(r"([^\n［］]+)［＃「\1」はキャプション］")
_BASE = re.compile(r"｜([^｜《》\n]*)《[^《》\n]*》")
# At the start of a line or after an opening bracket there is no base text, so 《》 are quotation marks there.
_RUBY = re.compile(r"(?<=[^\n　「『（])《[^《》\n]*》")
# Marks of notes by the volunteer who typed the text.
_NOTE_MARK = re.compile(r"［※\d+］")
_MEN_KU_TEN = re.compile(r"(?:第[34]水準 ?)?([12])-(\d{1,2})-(\d{1,2})")
_UNICODE = re.compile(r"U[+-]([0-9A-Fa-f]{4,6})")


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
            return chr(point) if point <= 0x10FFFF and not 0xD800 <= point < 0xE000 else None
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
_LEGEND = re.compile(rf"^(?:{_RULE}【テキスト中に現れる記号について】|［表記について］).*?^{_RULE}", re.M | re.S)
_FOOTER = re.compile(rf"^(?:{_RULE})?(?:［＃本文終わり］|[ 　]*(?:翻訳の)?底本[：:]|●?入力者注$)", re.M)
# Code points of Microsoft's cp932 -> the characters that Shift_JIS defines.
_VENDOR = str.maketrans("～∥－￠￡￢", "〜‖−¢£¬")


# The exceptions that zipfile raises for damaged files.
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
)


def _unzip(data: bytes, name: str) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            texts = [info for info in archive.infolist() if info.filename.lower().endswith(".txt")]
            if len(texts) != 1:
                raise TsugikiError(f"{name}: {len(texts)} texts (.txt) in the zip, expected one; exclude this work")
            return archive.read(texts[0])
    except DAMAGE as error:
        raise TsugikiError(f"{name}: a damaged zip ({error}); download it again or delete it") from error


def _decode(data: bytes, name: str, encoding: Encoding | None) -> str:
    for codec in (
        "utf-8-sig",
        "shift_jis",
        "cp932",
    ):  # text in the other encodings is invalid UTF-8 from its first kanji on
        try:
            text = data.decode(codec)
        except UnicodeDecodeError:
            continue
        found: Encoding = "utf-8" if codec == "utf-8-sig" else "shift_jis"
        if encoding not in (None, found) and not data.isascii():
            raise TsugikiError(f"{name}: the index says {encoding}, the text is {found}; download both again")
        if codec == "cp932":
            text = text.translate(_VENDOR)
        return text.replace("\r\n", "\n").replace("\r", "\n")
    raise TsugikiError(f"{name}: the text is neither Shift_JIS nor UTF-8; convert it to one of them")


def _split(source: str) -> tuple[list[str], str]:
    """Return the lines of the header (title and author), and the body."""
    source = source.lstrip("\n")
    footer = _FOOTER.search(source)
    end = footer.start() if footer else len(source)
    legend = _LEGEND.search(source, 0, end)
    if legend:
        return source[: legend.start()].split("\n"), source[legend.end() : end]
    # Without a legend, the header is the first paragraph, or the first two if both are single lines.
    blocks = re.split(r"\n{2,}", source[:end], maxsplit=2)
    taken = 2 if len(blocks) == 3 and "\n" not in blocks[0] + blocks[1] else 1
    return "\n".join(blocks[:taken]).split("\n"), "\n\n".join(blocks[taken:])


def title_and_author(header: list[str]) -> tuple[str, str]:
    """Return the title with its subtitles, and the author, from the lines of a header.

    The author is the last line before the translator's line. The title in the original language is left out.
    """
    lines = [line for raw in header if (line := plain_text(raw)[0].strip())]
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
