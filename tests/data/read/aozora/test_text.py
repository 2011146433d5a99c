"""The rules of the notation on invented sentences, and on the whole mirror if it is available."""

import contextlib
import io
import re
import zipfile
from pathlib import Path

import pytest

from tests.errors import assert_refused, refused
from tsugiki.data import guess_kana, plain_text, read_work, title_and_author
from tsugiki.errors import TsugikiError

RULE = "-" * 55

LEGEND = f"""{RULE}
【テキスト中に現れる記号について】

《》：ルビ
（例）駅《えき》
{RULE}
"""

FOOTER = """

底本：「試しの本」試し社
　　　2001（平成13）年1月1日発行
入力：誰か
青空文庫作成ファイル：
"""


def zipped(text: str | bytes, *names: str, encoding: str = "shift_jis") -> bytes:
    """A zip with the text, under each of the names."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names or ("work.txt",):
            archive.writestr(name, text if isinstance(text, bytes) else text.replace("\n", "\r\n").encode(encoding))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        # ruby
        ("駅《えき》まで歩く。", "駅まで歩く。"),
        ("｜Tom《トム》と｜甲《こう》｜乙《おつ》", "Tomと甲乙"),
        ("《なぜ》と書いてあり、「《どこ》へ」", "《なぜ》と書いてあり、「《どこ》へ」"),
        # annotations
        ("猫［＃「猫」に傍点］が鳴く。", "猫が鳴く。"),
        ("起\n　［＃ここから２字下げ］［＃ここから太字］\n承\n［＃ここで字下げ終わり］\n転", "起\n承\n転"),
        ("※［＃「一」、U+4E00］\n二", "一\n二"),
        ("閉じない［＃「一」に\n傍点］二", "閉じない［＃「一」に\n傍点］二"),
        ("駅の図［＃挿絵（fig1_01.png、横100×縦80）入る］です", "駅の図です"),
        ("前［＃キャプション］駅の図［＃キャプション終わり］後", "前後"),
        ("前\n駅《えき》の図［＃「駅《えき》の図」はキャプション］\n後", "前\n\n後"),
        ("道［＃「道」は底本では「※［＃「口＋世」、第3水準1-14-88］［一］」］を行く", "道を行く"),
        ("海［＃「海」に「うみ《ママ》」の注記］へ", "海へ"),
        # characters outside the set
        ("※［＃歌記号、1-3-28］歌う", "〽歌う"),
        ("※［＃「魚＋尾」、第3水準 1-94-59、12-3］", b"\xfe\xdb".decode("euc_jis_2004")),
        ("※［＃半濁点付き平仮名か、1-4-87］", "か\u309a"),
        ("※［＃「立へん＋丁」、U-2B7BB、61-10］", "\U0002b7bb"),
        ("｜山※［＃二の字点、1-2-22］《やまやま》を", "山〻を"),
        ("彼※［＃「※［＃「口＋世」、1-2-3］」の「口」に代えて「女」、U+5A0D］女", "彼\u5a0d女"),
        ("※［＃始め二重山括弧、1-1-52］客※［＃終わり二重山括弧、1-1-53］と", "《客》と"),
        # accents
        ("〔Scho:n, Go:the, o_e&〕", "Schön, Göthe, ōe&"),
        ("〔coe&ur, stras&e, s'il〕", "cœur, straße, s'il"),
        ("〔Le《ル》 the'〕", "Le thé"),
        ("〔milieu 環境〕と〔本当〕と〔Paris, 1900〕", "〔milieu 環境〕と〔本当〕と〔Paris, 1900〕"),
        # repetition marks that Shift_JIS lacks
        ("だん／＼と、ほの／″＼と、それ／゛＼", "だん〳〵と、ほの〴〵と、それ〴〵"),
        # white space
        ("　一段落目。\n\n\n\n　二段落目。　\n", "　一段落目。\n\n　二段落目。"),
    ],
)
def test_notation_becomes_plain_text(source, expected):
    assert plain_text(source) == (expected, 0)


@pytest.mark.parametrize(
    ("source", "expected", "count"),
    [
        ("※［＃「口＋世」、12-3］と※［＃小書き平仮名ん、上-5］", "〓と〓", 2),
        ("※※［＃「甲乙」の「へん」が「くちへん」］店", "〓〓店", 2),
        ("※［＃「口＋世」、1-99-1］", "〓", 1),
        ("※［＃「口＋世」、U+0000］と※［＃「口＋世」、U+000A］", "〓と〓", 2),
        ("字《※［＃「口＋世」、12-3］》［＃「※［＃「口＋世」、12-3］」はママ］", "字", 0),
    ],
)
def test_characters_without_a_code_become_a_geta_and_are_counted(source, expected, count):
    assert plain_text(source) == (expected, count)


def test_men_ku_ten_covers_jis_x_0213_as_the_codec_does():
    # Independent of the resolver's arithmetic: walk the codec's own repertoire from the characters' side.
    checked = 0
    for point in [*range(0xA0, 0xD800), *range(0xE000, 0x10000), *range(0x20000, 0x2A6D7)]:
        code = chr(point).encode("euc_jis_2004", "ignore")
        plane, pair = (2, code[1:]) if code[:1] == b"\x8f" else (1, code)
        if len(pair) != 2 or pair[0] == 0x8E:  # half-width katakana have no men-ku-ten
            continue
        row, cell = (byte - 0xA0 for byte in pair)
        text, unresolved = plain_text(f"字※［＃「字」、{plane}-{row}-{cell}］字")
        assert (unresolved, text[1:-1].encode("euc_jis_2004")) == (0, code)
        checked += 1
    assert checked > 11_000


@pytest.mark.parametrize(
    "source",
    [
        f"坂《さか》\n山田｜一《はじめ》\n\n{LEGEND}\n　上る。\n\n　下る。{FOOTER}",
        f"坂\n山田一\n\n　上る。\n\n　下る。{FOOTER}",
        f"坂\n\n山田一\n\n　上る。\n\n　下る。{FOOTER}",
        f"坂\n山田一\n\n{LEGEND.replace(RULE, '-' * 9)}\n　上る。\n\n　下る。{FOOTER}",
        f"坂\n山田一\n\n［表記について］\n●ルビは《ルビ》とした。\n{RULE}\n　上る。\n\n　下る。\n"
        f"{RULE}\n●入力者注\n※１　坂＝道。\n{RULE}{FOOTER}",
        f"坂\n山田一\n\n{LEGEND}　上る。\n\n　下る。\n\n入力者注\n・底本どおり。\n",
        f"坂\n山田一\n\n{LEGEND}　上る。\n\n　下る。\n［＃本文終わり］\n翻訳の原作：「坂」\n",
        f"坂\n山田一\n\n{LEGEND}　上る。\n\n　下る。",
    ],
)
def test_header_and_footer_in_their_variants(source):
    work = read_work(zipped(source))
    assert (work.title, work.author, work.text) == ("坂", "山田一", "　上る。\n\n　下る。")


BODY_LINE = "　本の話をした。\n底本：という言葉で始まる行。\n　話は続く。"
MORE_BOOKS = "\n\n底本：「一」試し社\n　　　2001年\n\n底本：「二」試し社\n入力：誰か\n"


@pytest.mark.parametrize(
    ("body", "footer"),
    [
        (BODY_LINE, FOOTER),
        (f"　これを底本とした。\n\n{RULE}\n\n　次の章。", FOOTER),
        (f"　序。\n\n底本：から始まる章。{'　話は続く。' * 200}", FOOTER),
        ("　上る。", MORE_BOOKS),
        (BODY_LINE, f"\n\n{RULE}\n●入力者注\n※１　坂＝道。\n{RULE}{FOOTER}"),
    ],
)
def test_a_line_of_the_body_that_begins_like_the_footer_is_kept(body, footer):
    assert read_work(zipped(f"坂\n山田一\n\n{LEGEND}\n{body}{footer}")).text == body


# What took quadratic time or longer in an earlier version: 100,000 characters of each.
REPEATED = {
    "kome": "※",
    "captions that are named": "あ［＃「あ」はキャプション］",
    "a long line before a caption": "漢",
    "legends without an end": "［表記について］\n",
    "nested annotations": "［＃［＃［＃",
    "opened ruby": "｜《",
    "footers": "\n底本：\n",
}


@pytest.mark.parametrize("name", REPEATED)
def test_hostile_texts_take_linear_time(name):
    unit = REPEATED[name]
    repeated = unit * (100_000 // len(unit))
    caption = "［＃キャプション終わり］［＃「い」はキャプション］"
    for source in (repeated, f"坂\n山田一\n\n　上る。{repeated}x{caption}", f"{LEGEND}［＃{repeated}"):
        plain_text(source)
        with contextlib.suppress(TsugikiError):  # some of them have no body
            read_work(zipped(source))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (["坂", "山田一"], ("坂", "山田一")),
        (["坂道日記", "その二　雨", "山田一"], ("坂道日記　その二　雨", "山田一")),
        (["坂", "THE SLOPE", "ジョン・ヒル", "山田一訳"], ("坂", "ジョン・ヒル")),
        (["Slopes", "a tale", "John Hill"], ("Slopes　a tale", "John Hill")),
        (["坂道の訳", "山田一著"], ("坂道の訳", "山田一")),
        (["坂", "山田一訳"], ("坂", "")),
        ([], ("", "")),
    ],
)
def test_title_and_author_lines(header, expected):
    assert title_and_author(header) == expected


def test_encodings_and_line_ends():
    lone = read_work(zipped("坂\r山田一\r\r　上る。\r　下る。\r\r底本：本".encode("shift_jis")))
    assert lone.text == "　上る。\n　下る。"
    text = "坂\n山田一\n\n　波線は〜、棒は−、丸は{}。" + FOOTER
    plain = read_work(zipped(text.format("二")))
    assert plain.text == "　波線は〜、棒は−、丸は二。"
    assert read_work(zipped(text.format("二"), encoding="utf-8-sig")) == plain
    vendor = text.format("①").replace("〜", "～").replace("−", "－")
    assert read_work(zipped(vendor, encoding="cp932")).text == "　波線は〜、棒は−、丸は①。"


def test_the_encoding_must_be_that_of_the_index():
    text = f"坂\n山田一\n\n　上る。{FOOTER}"
    assert read_work(zipped(text), encoding="shift_jis") == read_work(zipped(text))
    assert read_work(zipped(text, encoding="utf-8"), encoding="utf-8") == read_work(zipped(text))
    assert read_work(zipped("a\nb\n\nc"), encoding="utf-8").text == "c"  # ASCII is both
    assert_refused("1.zip: .*utf-8.*shift_jis", read_work, zipped(text), "1.zip", "utf-8")
    assert_refused("1.zip: .*shift_jis.*utf-8", read_work, zipped(text, encoding="utf-8"), "1.zip", "shift_jis")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not a zip", "damaged zip"),
        (zipped("坂\n山田一\n\n　上る。" * 50)[:-40], "damaged zip"),
        (zipped("図", "figure.png"), "0 .txt files"),
        (zipped("a", "a.txt", "b.txt"), "2 .txt files"),
        (zipped(b"\x81\xff\xfe\x00"), "neither Shift_JIS nor UTF-8"),
        (zipped(f"坂\n山田一\n\n{FOOTER}"), "no text between"),
    ],
)
def test_unreadable_files_are_one_line_errors(data, message):
    with refused(message) as caught:
        read_work(data, "cards/000001/files/1.zip")
    assert str(caught.value).startswith("cards/000001/files/1.zip: ")


def test_kana_of_a_text():
    assert guess_kana("　町へ行ったと思う。もう遅いだろう。") == "modern"
    assert guess_kana("　町へ行つたと思ふ。もう遅いだらう。") == "old"


# Exceptions in the mirror: marks that are not notation.
LITERAL = {
    # box drawings and a table with ｜ for their vertical lines
    "cards/000040/files/47288_ruby_29408.zip": "｜",
    "cards/000160/files/2714_ruby.zip": "｜",
    "cards/000160/files/2714_ruby_5772.zip": "｜",
    # a stray ｜ without ruby
    "cards/000879/files/3738_ruby_27212.zip": "｜",
    # ruby typed with a wrong opening bracket
    "cards/000148/files/56923_ruby_66668.zip": "》",
}


@pytest.mark.slow
def test_no_notation_is_left_in_the_whole_mirror(aozora_mirror: Path):
    leftover = re.compile(
        r"［＃|《|》|｜|［※|／″?＼|〔[^〕]*[aeiou]['`^:][^〕]*〕|^底本：|^青空文庫|^【テキスト中", re.M
    )
    found: dict[str, str] = {}
    for path in sorted(aozora_mirror.glob("cards/*/files/*.zip")):
        name = path.relative_to(aozora_mirror).as_posix()
        data = path.read_bytes()
        work = read_work(data, name)
        assert work.title, name
        assert work.author, name
        marks = set(leftover.findall(work.text))
        if marks:
            found[name] = "".join(sorted(marks))
    assert found == LITERAL
