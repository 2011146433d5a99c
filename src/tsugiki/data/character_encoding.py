"""Detect the character encoding of a text: UTF-8, UTF-16, EUC-JP or Shift_JIS.

The encodings are tried in turn with strict decoding: text in one of them is almost never valid in an earlier one.
"""

import codecs
import re
from collections.abc import Callable, Iterable
from typing import BinaryIO

from tsugiki.errors import TsugikiError
from tsugiki.language import _, marked

ENCODINGS = marked("UTF-8, UTF-16, EUC-JP or Shift_JIS")


def decode(data: bytes, name: str) -> tuple[str, str]:
    """Decode the bytes of a text file, and convert line ends to LF.

    Returns:
        The text, and Python's name of the encoding.

    Raises:
        TsugikiError: the text is in none of the encodings above.
    """
    for encoding in _candidates(data):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if encoding == "euc_jp" and _is_half_width([data]):
            continue
        if "\0" in text:
            break
        return text.replace("\r\n", "\n").replace("\r", "\n"), encoding
    raise TsugikiError(
        _("{name} is not text in {encodings}; convert it to UTF-8").format(name=name, encodings=_(ENCODINGS))
    )


def detect_encoding(open_file: Callable[[], BinaryIO], name: str) -> str:
    """Detect the encoding of a file as `decode` does, with only one line in memory at a time.

    Args:
        open_file: opens the file; it is read several times.
        name: the file's name, for errors.

    Raises:
        TsugikiError: the text is in none of the encodings above; the message names the first line that is not.
    """
    with open_file() as file:
        candidates = _candidates(file.read(_SAMPLE))
    first_invalid = None
    for encoding in candidates:
        with open_file() as file:
            invalid = _invalid_line(file, encoding)
        if invalid is None and encoding == "euc_jp":
            with open_file() as file:
                encoding = "cp932" if _is_half_width(file) else encoding
        if invalid is None:
            return encoding
        first_invalid = first_invalid or invalid
    raise TsugikiError(
        _("{path}:{first_invalid} is not text in {encodings}; convert the file to UTF-8").format(
            path=name, first_invalid=first_invalid, encodings=_(ENCODINGS)
        )
    )


_SAMPLE = 4096  # bytes, an even number
_MOST_ODD, _LEAST_NO_KANJI = 0.05, 0.2
_NO_KANJI = re.compile("[\n -~ぁ-ヶー、。]")
# Letters, kana, kanji and punctuation. UTF-16 in the wrong byte order, and other data, hardly have any of these.
_USUAL = re.compile("[\t\n\r\x20-\x7e\u00a0-\u024f\u2010-\u2026\u3000-\u30ff\u4e00-\u9fff\uff01-\uff9f]")


def _candidates(head: bytes) -> tuple[str, ...]:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return ("utf-16",)
    sample = head[:_SAMPLE]
    if b"\0" in sample:  # no text in the other encodings has null bytes, but UTF-16 has them in every line end
        wide = tuple(encoding for encoding in ("utf-16-le", "utf-16-be") if _is_usual(sample, encoding))
        return wide or ("utf-8-sig",)  # an error then names the line
    return ("utf-8-sig", "euc_jp", "cp932")


def _is_usual(sample: bytes, encoding: str) -> bool:
    """Return whether nearly all characters of a sample are usual ones, and enough are not kanji.

    Pairs of ASCII letters that are read as UTF-16 are nearly all kanji.
    """
    text = sample[: len(sample) // 2 * 2].decode(encoding, "replace")
    is_usual = len(_USUAL.findall(text)) >= (1 - _MOST_ODD) * len(text)
    return is_usual and len(_NO_KANJI.findall(text)) >= _LEAST_NO_KANJI * len(text)


def _invalid_line(file: BinaryIO, encoding: str) -> int | None:
    """Return the number of the first line that is not valid in an encoding, or None."""
    decoder = codecs.getincrementaldecoder(encoding)()
    number = 1
    try:
        for number, line in enumerate(file, 1):
            if "\0" in decoder.decode(line):
                return number
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return number
    return None


_ASCII, _HALF_WIDTH_BYTES = bytes(range(0x80)), bytes(range(0xA1, 0xE0))
_MIN_LETTERS = 6  # three kanji; shorter texts are taken for EUC-JP
_COMMON = re.compile("[ぁ-ヶー、。・「」]")
_ODD_HALF_WIDTH = re.compile("(?<![ｳｶ-ﾄﾊ-ﾎ])ﾞ|(?<![ﾊ-ﾎ])ﾟ|(?<![ｱ-ﾟ])[ｰｧ-ｯ]")


def _is_half_width(lines: Iterable[bytes]) -> bool:
    """Return whether a text that is valid EUC-JP is more likely half-width katakana in Shift_JIS.

    In such a text, each byte above ASCII is one half-width character, its pairs of bytes are hardly ever kana or
    punctuation in EUC-JP, and voicing marks and small letters follow a letter that can have them.
    """
    letters = common = odd = 0
    for line in lines:
        high = line.translate(None, _ASCII)
        if high.translate(None, _HALF_WIDTH_BYTES):
            return False
        letters += len(high)
        common += 2 * len(_COMMON.findall(line.decode("euc_jp")))
        odd += len(_ODD_HALF_WIDTH.findall(line.decode("cp932")))
    return letters >= _MIN_LETTERS and 4 * common < letters and 20 * odd < letters
