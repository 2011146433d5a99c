"""What Aozora Bunko holds: its own index (list_person_all_extended_utf8), or a manifest.tsv beside a mirror."""

import csv
import io
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast
from urllib.parse import urlsplit

from tsugiki.data.aozora import DAMAGE, title_and_author
from tsugiki.errors import TsugikiError

Kana = Literal["modern", "old"]

INDEX = "list_person_all_extended_utf8"


@dataclass(frozen=True)
class Entry:
    """What a source says of a work before it is read; None where it says nothing."""

    path: str
    person_id: str
    author: str | None = None
    title: str | None = None
    kana: Kana | None = None


def read_index(data: bytes, name: str) -> list[Entry]:
    """The free works in the library's index, a CSV file or a zip of one: one entry a work and author.

    Raises:
        TsugikiError: not such an index.
    """
    try:
        if data[:2] == b"PK":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                data = archive.read(archive.namelist()[0])
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        return [
            Entry(
                path=_below_root(row["テキストファイルURL"]),
                person_id=row["人物ID"],
                author=row["姓"] + row["名"],
                title=row["作品名"],
                kana=_orthography(row["文字遣い種別"]),
            )
            for row in rows
            if row["作品著作権フラグ"] == "なし" and row["役割フラグ"] == "著者" and row["テキストファイルURL"]
        ]
    except KeyError as error:
        raise TsugikiError(f"{name}: no column {error.args[0]}; expected Aozora Bunko's {INDEX}") from error
    except (*DAMAGE, IndexError, csv.Error, TypeError) as error:
        raise TsugikiError(f"{name}: not a readable index ({error}); fetch it again") from error


def _below_root(url: str) -> str:
    """cards/… for what the library keeps itself, the whole URL for the rest."""
    path = urlsplit(url).path.removeprefix("/")
    return path if re.fullmatch(r"cards/\d+/files/[\w.-]+\.zip", path) else url


def _orthography(name: str) -> Kana | None:
    return "old" if "旧仮名" in name else "modern" if "新仮名" in name else None


def read_manifest(path: Path) -> list[Entry]:
    """Entries of a manifest.tsv: path, person_id, author_line, title_line, kana_guess.

    Titles are left to the texts, whose headers also have the subtitles.

    Raises:
        TsugikiError: not such a file; the message names the line.
    """
    with path.open(encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        try:
            return [
                Entry(
                    path=row["path"],
                    person_id=row["person_id"],
                    author=title_and_author([row["title_line"], row["author_line"]])[1] or None,
                    kana=cast(Kana | None, row["kana_guess"] if row["kana_guess"] in ("modern", "old") else None),
                )
                for row in rows
            ]
        except (KeyError, TypeError, UnicodeDecodeError) as error:
            raise TsugikiError(
                f"{path}: line {rows.line_num}: not a manifest ({error}); repair or remove it"
            ) from error
