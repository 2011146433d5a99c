"""Detect the character encoding of a text: UTF-8, UTF-16, ISO-2022-JP, EUC-JP or Shift_JIS.

What is valid UTF-8 is UTF-8, except ASCII with the escape sequences of ISO-2022-JP. EUC-JP and Shift_JIS are told apart
by what the text would be in each, because each is often valid in the other: short half-width katakana in Shift_JIS are
kanji in EUC-JP, and a page in EUC-JP with one damaged character is half-width katakana in Shift_JIS.
"""

import codecs
import io
import re
from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import BinaryIO

from tsugiki.errors import TsugikiError
from tsugiki.language import _, marked

ENCODINGS = marked("UTF-8, UTF-16, ISO-2022-JP, EUC-JP or Shift_JIS")
NAMES = {
    **dict.fromkeys(("utf-16", "utf-16-le", "utf-16-be"), "UTF-16"),
    "iso2022_jp_ext": "ISO-2022-JP",
    "euc_jp": "EUC-JP",
    "cp932": "Shift_JIS",
}
"""Python's names of the encodings except UTF-8 -> their usual names."""


def decode(data: bytes, name: str) -> tuple[str, str]:
    """Return the text of a file, with LF as line ends and no byte order marks, and Python's name of its encoding."""
    encoding = detect_encoding(lambda: io.BytesIO(data), name)
    return decode_as(data, encoding), encoding


def decode_as(data: bytes, encoding: str) -> str:
    """Return the text of a file in a detected encoding, with LF as line ends and no byte order marks."""
    # Files that were joined have a byte order mark at the start of each.
    return data.decode(encoding, _ERRORS).replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", "")


def open_text(file: BinaryIO, encoding: str) -> io.TextIOWrapper:
    """Return the lines of a file in a detected encoding."""
    return io.TextIOWrapper(file, encoding, _ERRORS)


def detect_encoding(open_file: Callable[[], BinaryIO], name: str, usual: Callable[[], str] = lambda: "") -> str:
    """Detect the encoding of a file, which is read several times, with only one line in memory at a time.

    Args:
        open_file: opens the file.
        name: the file's name for errors.
        usual: is called for a text that can be in EUC-JP as well as in Shift_JIS, and returns which one to try first;
            if it returns nothing, that is the likelier one.

    Raises:
        TsugikiError: the file has none of the encodings, or is damaged.
    """
    invalid = 0
    for encoding in _candidates(open_file, usual):
        with open_file() as file:
            line = _invalid_line(file, encoding)
        if line is None:
            return encoding
        invalid = max(invalid, line)
    raise TsugikiError(
        "{path}:{first_invalid} is not text in {encodings}; convert the file to UTF-8",
        path=name,
        first_invalid=invalid,
        encodings=_(ENCODINGS),
    )


_SAMPLE = 4096  # bytes, an even number
_MOST_ODD, _LEAST_NO_KANJI = 0.05, 0.2
_NO_KANJI = re.compile("[\n -~ぁ-ヶー、。]")
# Letters, kana, kanji and punctuation. UTF-16 in the wrong byte order, and other data, hardly have any of these.
_USUAL = re.compile("[\t\n\r\x20-\x7e\u00a0-\u024f\u2010-\u2026\u3000-\u30ff\u4e00-\u9fff\uff01-\uff9f]")
_DECLARED = re.compile(rb"""charset=["']?(?:x-)?(euc|shift|sjis)""", re.IGNORECASE)  # of an HTML page
_ISO_2022_JP = re.compile(rb"\x1b(\$[@B]|\$\(D|\([IJ])")  # a terminal's log may have others


def _candidates(open_file: Callable[[], BinaryIO], usual: Callable[[], str]) -> Iterator[str]:
    """Yield the encodings to try; for `usual`, see `detect_encoding`."""
    with open_file() as file:
        sample = file.read(_SAMPLE)
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        yield "utf-16"
        return
    if b"\0" in sample:  # no text in the other encodings has null bytes, but UTF-16 has them in every line end
        wide = [encoding for encoding in ("utf-16-le", "utf-16-be") if _is_usual(sample, encoding)]
        yield from wide or ["utf-8-sig"]  # an error then names the line
        return
    with open_file() as file:
        if _is_iso_2022_jp(file):
            yield "iso2022_jp_ext"
            return
    yield "utf-8-sig"
    with open_file() as file:
        evidence = _evidence_of_euc_jp(file)
    if abs(evidence) < _SURE:
        declared = _DECLARED.search(sample)
        if declared is not None:
            yield "euc_jp" if declared[1].lower() == b"euc" else "cp932"
        yield from filter(None, [usual()])
    if evidence > 0:
        yield "euc_jp"
    if evidence < _ENOUGH:
        yield "cp932"
    if evidence <= 0:
        yield "euc_jp"


def _is_usual(sample: bytes, encoding: str) -> bool:
    """Return whether nearly all characters of a sample are usual ones, and enough are not kanji.

    Pairs of ASCII letters that are read as UTF-16 are nearly all kanji.
    """
    text = sample[: len(sample) // 2 * 2].decode(encoding, "replace")
    is_usual = len(_USUAL.findall(text)) >= (1 - _MOST_ODD) * len(text)
    return is_usual and len(_NO_KANJI.findall(text)) >= _LEAST_NO_KANJI * len(text)


def _is_iso_2022_jp(lines: Iterable[bytes]) -> bool:
    """Return whether all bytes are ASCII, and there is an escape sequence."""
    found = False
    for line in lines:
        if not line.isascii():
            return False
        found = found or (b"\x1b" in line and _ISO_2022_JP.search(line) is not None)
    return found


def _invalid_line(file: BinaryIO, encoding: str) -> int | None:
    """Return the number of the first line that is not valid in an encoding, or None."""
    # That of utf-8-sig takes the beginning of a byte order mark for a whole text.
    decoder = codecs.getincrementaldecoder(encoding.removesuffix("-sig"))(_ERRORS)
    number = 1
    try:
        for number, line in enumerate(file, 1):
            if "\0" in decoder.decode(line):
                return number
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return number
    return None


def _vendor_character(error: UnicodeError) -> tuple[str, int]:
    """Decode a character that vendors have added to the rows 13 and 89 to 92 of JIS X 0208, such as ① or 髙.

    Python's EUC-JP and ISO-2022-JP lack them, and its Shift_JIS (cp932) has them.
    """
    if isinstance(error, UnicodeDecodeError) and error.encoding in ("euc_jp", "iso2022_jp_ext"):
        row, cell = (byte & 0x7F for byte in (error.object[error.start : error.start + 2] + b"  ")[:2])
        if row in (0x2D, 0x79, 0x7A, 0x7B, 0x7C) and 0x21 <= cell <= 0x7E:
            lead, second = divmod(row - 0x21, 2)
            trail = cell + (0x7E if second else 0x1F + (cell > 0x5F))
            pair = bytes([lead + (0x81 if lead < 0x1F else 0xC1), trail])
            return pair.decode("cp932"), error.start + 2
    raise error


_ERRORS = "tsugiki.vendor_characters"
codecs.register_error(_ERRORS, _vendor_character)

_SURE, _ENOUGH = 3, 100
_ASCII = bytes(range(0x80))
_EUC_JP_BYTES = bytes([0x8E, 0x8F, *range(0xA1, 0xFF)])
_NOT_HALF_WIDTH = bytes(range(0xE0, 0x100))
_KANA = re.compile("[ぁ-ヶー　、。・「」『』（）！？…―]")
# The 300 most common kanji of 4,450 works whose two bytes in EUC-JP could be half-width katakana: seven of ten such
# kanji in a text are one of these, and one of ten pairs of random katakana.
_COMMON_KANJI = re.compile(
    "["
    "人見出思子分何気行間自云生前家三十言下者年小知心物今立本屋目話度聞不山無通長学少君然身同地面実僕様五"
    "意明感的外男四考郎文木田声名色体世笑頭切足新道夫動真帰音村葉車天変味次吉多悪仕正好全町用平親力半現太"
    "花神六七返馬達士供食八海以青直別得戸重流信起船発原置頃最誰火対記石余想形病覚如座付電朝教待論百赤読姿"
    "関申他殺其突愛開連有呼古張此打室暗残命土成可議細機急番楽左両性始表強安兵在寝調深娘要兄老根店使息恐化"
    "芸西法夢元衛術敷松客雨婦品果渡横社洋必角或円俺掛幸振胸判右遊界春路失片探軍階消影友降妙勢念晩指師伝義"
    "経止静配忘運鳴続宿由住旅校折支奴段限存和際断追業談点江造皆腹驚故進良能都背集識鳥計治昔來極押側河越反"
    "]"
)
_NOT_ASCII = re.compile("[^\0-\x7f]")
_ODD_HALF_WIDTH = re.compile("(?<![ｳｶ-ﾄﾊ-ﾎ])ﾞ|(?<![ﾊ-ﾎ])ﾟ|(?<![ｱ-ﾟ])[ｰｧ-ｯ]")


def _evidence_of_euc_jp(lines: Iterable[bytes]) -> float:
    """Return how much speaks for EUC-JP and, below 0, for Shift_JIS, in as many lines as are needed.

    In EUC-JP, most characters are kana, punctuation, or common kanji, and hardly any are kanji of the second level
    (from byte 0xD0 on), half-width, or invalid. In Shift_JIS, a text without bytes below 0xA0 is half-width katakana,
    in which voicing marks and small letters follow a letter that can have them. The weights were tried on words in
    kanji, words in half-width katakana and random half-width katakana of 1 to 12 characters.
    """
    evidence = 0
    for line in lines:
        high = line.translate(None, _ASCII)
        if high.translate(None, _EUC_JP_BYTES):
            return -inf
        text = line.decode("euc_jp", "replace")
        kana, common = len(_KANA.findall(text)), len(_COMMON_KANJI.findall(text))
        codes = [character.encode("euc_jp", "replace") for character in _NOT_ASCII.findall(text)]
        rare = sum(not b"\xa1" <= code < b"\xd0" for code in codes)
        others = len(codes) - kana - common - rare
        evidence += 4 * kana + common - others - 3 * rare
        evidence += 2 * len(_ODD_HALF_WIDTH.findall(line.decode("cp932", "replace")))
        evidence += 3 * (len(high) - len(high.translate(None, _NOT_HALF_WIDTH)))
        if abs(evidence) >= _ENOUGH:
            break
    return evidence
