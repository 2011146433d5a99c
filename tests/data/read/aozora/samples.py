"""A small invented Aozora Bunko: three works, and an index with the kinds of rows that the real one has."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from tests.data.read.aozora.test_text import FOOTER, zipped
from tsugiki.data import INDEX, Query, Work, open_source, read_entries, select

COLUMNS = ["作品ID", "作品名", "副題", "文字遣い種別", "作品著作権フラグ", "人物ID", "姓", "名", "役割フラグ"]
COLUMNS += ["テキストファイルURL", "テキストファイル符号化方式", "テキストファイル文字集合"]
ROOT = "https://www.aozora.gr.jp"


def row(work: str, title: str, person: str, name: tuple[str, str], **other: str) -> dict[str, str]:
    usual = {
        "作品ID": work,
        "作品名": title,
        "文字遣い種別": "新字新仮名",
        "作品著作権フラグ": "なし",
        "人物ID": person,
        "姓": name[0],
        "名": name[1],
        "役割フラグ": "著者",
        "テキストファイルURL": url(f"{person}/files/{work}"),
        "テキストファイル符号化方式": "ShiftJIS",
    }
    return usual | other


def url(path: str) -> str:
    return f"{ROOT}/cards/{path}_ruby.zip"


YAMADA, KAWADA = ("山田", "一"), ("川田", "二葉")
ROWS = [
    row("1", "坂の上", "000001", YAMADA),
    row("2", "海の底", "000001", YAMADA, 文字遣い種別="旧字旧仮名"),
    row("3", "川の話", "000002", KAWADA),
    row("3", "川の話", "000001", YAMADA, テキストファイルURL=url("000002/files/3")),  # written by two
    row("4", "新しい話", "000002", KAWADA, 作品著作権フラグ="あり"),
    row("5", "訳した話", "000001", YAMADA),
    row("5", "訳した話", "000002", KAWADA, 役割フラグ="翻訳者", テキストファイルURL=url("000001/files/5")),
    row("6", "よそにある話", "000002", KAWADA, テキストファイルURL="https://example.org/a.zip"),
    row("7", "題名だけ", "000002", KAWADA, テキストファイルURL=""),
]


def index_csv(rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8-sig")


def index_zip(rows: list[dict[str, str]]) -> bytes:
    return zipped(index_csv(rows), f"{INDEX}.csv")


def work_zip(title: str, author: str, text: str = "　上ったと思う。") -> bytes:
    return zipped(f"{title}\n{author}\n\n{text}{FOOTER}")


FILES = {
    "cards/000001/files/1_ruby.zip": work_zip("坂の上", "山田一"),
    "cards/000001/files/2_ruby.zip": work_zip("海の底", "山田一", "　下つたと思ふ。"),
    "cards/000002/files/3_ruby.zip": work_zip("川の話", "川田二葉", "　※［＃「口＋世」、1-1］の字。"),
}


def make_mirror(root: Path) -> Path:
    for name, data in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def works_of(source: str, **query: str) -> Iterator[Work]:
    """Yield the works of a site or a mirror that match a query; works that cannot be read are left out."""
    wanted = Query(**query)  # type: ignore[arg-type]
    opened = open_source(source)
    return read_entries(opened, select(opened.entries(), wanted), wanted, lambda reason: None)
