"""Detect the character encoding of a text: UTF-8, UTF-16, EUC-JP or Shift_JIS.

The encodings are tried in turn with strict decoding: text in one of them is almost never valid in an earlier one. Only
half-width katakana in Shift_JIS are often valid EUC-JP.
"""

import codecs
import io
import re
from collections.abc import Callable, Iterable
from typing import BinaryIO

from tsugiki.errors import TsugikiError
from tsugiki.language import _, marked

ENCODINGS = marked("UTF-8, UTF-16, EUC-JP or Shift_JIS")


def decode(data: bytes, name: str) -> tuple[str, str]:
    """Return the text of a file, with LF as line ends and no byte order marks, and Python's name of its encoding."""
    encoding = detect_encoding(lambda: io.BytesIO(data), name)
    # Files that were joined have a byte order mark at the start of each.
    return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", ""), encoding


def detect_encoding(open_file: Callable[[], BinaryIO], name: str) -> str:
    """Detect the encoding of a file, which is read several times, with only one line in memory at a time."""
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
    message = _("{path}:{first_invalid} is not text in {encodings}; convert the file to UTF-8")
    raise TsugikiError(message.format(path=name, first_invalid=first_invalid, encodings=_(ENCODINGS)))


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


def _is_half_width(lines: Iterable[bytes]) -> bool:
    """Return whether a text that is valid EUC-JP is more likely half-width katakana in Shift_JIS.

    In such a text, each byte above ASCII is one half-width character. In EUC-JP, its pairs of bytes are hardly ever
    kana or punctuation, whose first bytes are ､ and ｡, and seldom common kanji; in Shift_JIS, voicing marks and small
    letters follow a letter that can have them. The weights were tried on random katakana and on sentences of books.
    """
    score = 0
    for line in lines:
        high = line.translate(None, _ASCII)
        if high.translate(None, _HALF_WIDTH_BYTES):
            return False
        text = line.decode("euc_jp")
        kana, common = len(_KANA.findall(text)), len(_COMMON_KANJI.findall(text))
        rare = len(_NOT_ASCII.findall(text)) - kana - common
        score += 4 * kana + common - 2 * rare + 2 * len(_ODD_HALF_WIDTH.findall(line.decode("cp932")))
    return score <= 0
