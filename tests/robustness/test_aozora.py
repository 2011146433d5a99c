"""Mutated works, indexes and mirrors of Aozora Bunko are read, or refused in one line."""

import csv
import io
import random
import zipfile
from pathlib import Path

import pytest

from tests.data.read.aozora.samples import COLUMNS, ROWS, make_mirror
from tests.data.read.aozora.test_text import FOOTER, LEGEND, RULE, zipped
from tests.robustness.mutations import MAX_SIZE, mutate_bytes, mutate_value
from tsugiki.data import INDEX, MirrorFolder, Query, plain_text, read_entries, read_work, select

pytest.importorskip("resource", reason="the harness needs a Unix system")
harness = pytest.importorskip("tests.robustness.harness")

WORK = f"""坂《さか》の上
THE SLOPE
山田｜一《はじめ》
川田二葉訳

{LEGEND}
［＃３字下げ］一［＃「一」は中見出し］

　坂を※［＃「口＋世」、第3水準1-14-88］と上る。〔cafe'〕でだん／＼と。
前［＃キャプション］駅の図［＃キャプション終わり］図［＃「図」はキャプション］
　※［＃二の字点、1-2-22］《おのおの》、※［＃「魚＋尾」、U+9B93、11-8］［※３］。
［＃ここから２字下げ］
海［＃「海」に「うみ《ママ》」の注記］へ。
［＃ここで字下げ終わり］
{FOOTER}"""
MARKS = [
    *(
        "《",
        "》",
        "｜",
        "※",
        "［＃",
        "［",
        "］",
        "「",
        "」",
        "、",
        "〔",
        "〕",
        "e'",
        "／＼",
        "底本：",
        "U+4E16",
        "1-2-22",
    ),
    *("　", "\n", "［＃キャプション］", "［＃キャプション終わり］", "［＃「図」はキャプション］", "［表記について］"),
    *(f"{RULE}\n", "［＃本文終わり］"),
]
PIECES = [mark.encode("shift_jis") for mark in MARKS]
INDEX_ROWS = [COLUMNS, *([row.get(column, "") for column in COLUMNS] for row in ROWS)]
MANIFEST_ROWS = [
    ["path", "person_id", "author_line", "title_line", "kana_guess"],
    *(
        [f"cards/000001/files/{number}_ruby.zip", "000001", "山田｜一《はじめ》", "坂", "modern"]
        for number in (1, 2, 9)
    ),
]
CELLS = [
    "",
    "../a.zip",
    "/dev/zero",
    "cards",
    "a\0b",
    "https://",
    "http://[::1",
    "\t",
    "\n",
    '"',
    "なし",
    "あり",
    "旧仮名",
    "あ" * 9999,
]


def read_text(rng: random.Random, folder: Path) -> None:
    text = mutate_bytes(rng, WORK.encode("shift_jis"), PIECES)
    if rng.random() < 0.5:
        read_work(zipped(text))
    else:
        plain_text(text.decode("shift_jis", "replace"))


def read_zip(rng: random.Random, folder: Path) -> None:
    buffer = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(buffer, "w", method) as archive:
        unit = WORK.encode("shift_jis") if rng.random() < 0.7 else rng.choice(PIECES)
        archive.writestr("a.txt", unit * (MAX_SIZE // len(unit) if rng.random() < 0.05 else rng.choice((1, 1, 1, 100))))
        for number in range(rng.choice((0, 0, 1, 20))):
            archive.writestr(f"{number}.{rng.choice(('png', 'txt'))}", "")
    data = buffer.getvalue()
    read_work(mutate_bytes(rng, data) if rng.random() < 0.8 else data)


def read_library(rng: random.Random, folder: Path) -> None:
    make_mirror(folder)
    if rng.random() < 0.5:
        index = mutated_table(rng, INDEX_ROWS, csv.excel)
        is_zip = rng.random() < 0.2
        content = mutate_bytes(rng, zipped(index, name=f"{INDEX}.csv")) if is_zip else index
        (folder / f"{INDEX}.{'zip' if is_zip else 'csv'}").write_bytes(content)
    else:
        (folder / "manifest.tsv").write_bytes(mutated_table(rng, MANIFEST_ROWS, csv.excel_tab))
    source = MirrorFolder(folder)
    query = Query(author=rng.choice((None, "山田一", "川田二葉")), title=rng.choice((None, None, "坂")))
    chosen = select(source.entries(), query)
    for work in read_entries(source, chosen, query, skip=len, missing=len):
        assert work.source.startswith("cards/")


def mutated_table(rng: random.Random, rows: list[list[str]], dialect: type[csv.Dialect]) -> bytes:
    """Return a table in which cells are changed, or bytes of the file."""
    changes_cells = rng.random() < 0.7
    table = mutate_value(rng, rows, CELLS) if changes_cells else rows
    text = io.StringIO(newline="")
    csv.writer(text, dialect).writerows(row if isinstance(row, list) else [row] for row in table)
    data = text.getvalue().encode("utf-8", "surrogatepass")
    return data[:MAX_SIZE] if changes_cells else mutate_bytes(rng, data, [cell.encode() for cell in CELLS])


READERS = {"Aozora text": read_text, "Aozora zip": read_zip, "Aozora index and manifest": read_library}


@pytest.mark.parametrize("name", READERS)
def test_some_mutations(name: str, tmp_path: Path):
    harness.check(name, READERS[name], harness.QUICK, tmp_path / "case")


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_mutations(name: str, tmp_path: Path):
    harness.check(name, READERS[name], harness.LONG, tmp_path / "case")
