"""Mutated data files are read and tokenised, or refused in one line."""

import csv
import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.data.read.test_formats import EPUB, WORK
from tests.robustness.mutations import MAX_SIZE, VALUES, json_bytes, mutate_bytes, mutate_value
from tests.tiny import byte_tokenizer
from tsugiki.data import content_key, near_duplicates, open_store, parse_held_out, read_records, split_records

pytest.importorskip("resource", reason="the harness needs a Unix system")
harness = pytest.importorskip("tests.robustness.harness")

TURNS = [{"role": "user", "content": "庭の梅は？"}, {"role": "assistant", "content": "咲いた。", "weight": 1}]
ROWS: list[list[dict[str, Any]]] = [
    [{"text": "庭の梅が咲いた。", "author": "A"}, {"text": "まだ寒い。\n春は遠い。", "author": "B"}],
    [{"prompt": "問 ", "completion": "答え"}, {"prompt": "二 ", "completion": "に"}],
    [{"messages": [{"role": "system", "content": "丁寧に。"}, *TURNS]}, {"messages": TURNS * 3}],
    [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}] * 2,
    [{"instruction": "訳せ", "input": "dog", "output": "犬"}, {"instruction": "歌え", "output": "ら"}],
    [{"prompt": TURNS[:1], "completion": [{"role": "assistant", "content": [{"type": "text", "text": "梅"}]}]}] * 2,
]
PIECES = [
    *(
        b'"',
        b"\\ud800",
        b"\\u0000",
        b"[",
        b"{",
        b"}",
        b"\n",
        b"\r",
        b",",
        b":",
        b"null",
        b"NaN",
        b"9" * 200,
        b"\0",
        b"\xff",
    ),
    *(
        b"\xb1\xb2\xb3\xb4",
        b"\xa4\xa2",
        b"\x81\xff",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        "e\u0301\u0327".encode(),
        b'""',
        b"\t",
    ),
]
ENCODINGS = ("utf-8", "utf-8", "cp932", "euc_jp", "utf-16")


def read(rng: random.Random, path: Path) -> None:
    """Read a file in the ways that a run does."""
    content_key(path)
    records = list(read_records(path))
    store = open_store(records, "key", TOKENIZER, rng.choice(("all", "last")), path.parent / "cache")
    groups = near_duplicates(store.index.signatures)
    split_records(store.index, parse_held_out(rng.choice((0.5, "author=A"))), 0, groups)


TOKENIZER = byte_tokenizer()
TOKENIZER.chat_template = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def encoded(rng: random.Random, text: str) -> bytes:
    return text.encode(rng.choice(ENCODINGS), errors="replace")


def read_jsonl(rng: random.Random, folder: Path) -> None:
    rows = rng.choice(ROWS)
    if rng.random() < 0.7:
        changed = mutate_value(rng, rows)
        lines = changed if isinstance(changed, list) else [changed]
        data = b"\n".join(map(json_bytes, lines)) + b"\n"
        data = (data * min(rng.choice((1, 1, 1, 50)), MAX_SIZE // len(data) + 1))[:MAX_SIZE]
    else:
        data = mutate_bytes(rng, encoded(rng, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)), PIECES)
    (folder / "a.jsonl").write_bytes(data)
    read(rng, folder / "a.jsonl")


def read_csv(rng: random.Random, folder: Path) -> None:
    rows = rng.choice([rows for rows in ROWS if all(isinstance(value, str) for row in rows for value in row.values())])
    table: Any = [list(rows[0]), *([row.get(name, "") for name in rows[0]] for row in rows)]
    if rng.random() < 0.5:
        table = mutate_value(rng, table, [str(value)[:100_000] for value in VALUES])
    text = io.StringIO(newline="")
    csv.writer(text).writerows(row if isinstance(row, list) else [row] for row in table)
    data = encoded(rng, text.getvalue()[: MAX_SIZE // 4])
    (folder / "a.csv").write_bytes(mutate_bytes(rng, data, PIECES) if rng.random() < 0.6 else data)
    read(rng, folder / "a.csv")


def read_txt(rng: random.Random, folder: Path) -> None:
    for name in ("a.txt", "b.txt"):
        data = encoded(rng, rng.choice(("吾輩は猫である。\n名前はまだ無い。", "ｱｲｳｴｵｶﾞ", "plain text\r\n", "漢字のみ")))
        (folder / name).write_bytes(mutate_bytes(rng, data, PIECES))
    read(rng, folder)


def read_parquet(rng: random.Random, folder: Path) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    kind = rng.randrange(4)
    rows: Any = mutate_value(rng, rng.choice(ROWS)) if kind == 0 else rng.choice(ROWS)
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    table: Any = {name: [row.get(name) for row in rows] for row in rows for name in row}
    if kind == 1:  # one value that is repeated by references
        numbers = arrow.array([0] * rng.choice((10, 1000, 50_000)), arrow.int32())
        value = rng.choice(("a", "漢" * 1000, rng.randbytes(100_000).hex()))
        table = {"text": arrow.DictionaryArray.from_arrays(numbers, arrow.array([value]))}
    try:
        parquet.write_table(arrow.table(table), folder / "a.parquet", compression=rng.choice(("none", "zstd", "gzip")))
    except (arrow.ArrowException, TypeError, OverflowError, UnicodeError, AttributeError):  # not a table
        return
    if kind > 1:
        data = (folder / "a.parquet").read_bytes()
        (folder / "a.parquet").write_bytes(mutate_bytes(rng, data))
    read(rng, folder / "a.parquet")


def read_json(rng: random.Random, folder: Path) -> None:
    rows: Any = rng.choice(ROWS)
    if rng.random() < 0.6:
        data = json_bytes(mutate_value(rng, rows))
    else:
        data = mutate_bytes(rng, encoded(rng, json.dumps(rows, ensure_ascii=False)), PIECES)
    (folder / "a.json").write_bytes(data[:MAX_SIZE])
    read(rng, folder / "a.json" if rng.random() < 0.5 else folder)


def read_zip(rng: random.Random, folder: Path) -> None:
    members = {
        "a.txt": encoded(rng, WORK),
        "sub/b.jsonl": b'{"text": "a"}\n' * 9,
        "c.json": json_bytes([{"text": "梅"}]),
    }
    if rng.random() < 0.3:
        members = {name: mutate_bytes(rng, content, PIECES) for name, content in members.items()}
    data = zipped({name: members[name] for name in rng.sample(list(members), rng.randint(1, 3))})
    (folder / "a.zip").write_bytes(mutate_bytes(rng, data) if rng.random() < 0.7 else data)
    (folder / "b.txt").write_text("別の文章。", encoding="utf-8")
    read(rng, folder)


def read_work(rng: random.Random, folder: Path) -> None:
    lines = WORK.splitlines(keepends=True)
    text = list(lines)
    for _ in range(rng.randint(0, 4)):
        place = rng.randrange(len(text))
        text[place : place + rng.randint(0, 2)] = [rng.choice(lines) * rng.choice((1, 1, 2000))]
    (folder / "a.txt").write_bytes(mutate_bytes(rng, encoded(rng, "".join(text)[: MAX_SIZE // 4]), PIECES))
    (folder / "b.txt").write_text("別の文章。", encoding="utf-8")
    read(rng, folder)


def read_epub(rng: random.Random, folder: Path) -> None:
    members = dict(EPUB)
    if rng.random() < 0.6:
        name = rng.choice(list(members))
        members[name] = mutate_bytes(
            rng, members[name], [b"<rt>" * 999, b"</p>", b"<!--", b"&#x110000;", b"<![CDATA[", b"<"]
        )
    data = zipped(members)
    (folder / "a.epub").write_bytes(mutate_bytes(rng, data) if rng.random() < 0.4 else data)
    (folder / "b.txt").write_text("別の文章。", encoding="utf-8")
    read(rng, folder)


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


READERS = {
    "JSON lines": read_jsonl,
    "JSON": read_json,
    "CSV": read_csv,
    "texts": read_txt,
    "works": read_work,
    "zips": read_zip,
    "EPUB": read_epub,
    "Parquet": read_parquet,
}


@pytest.mark.parametrize("name", READERS)
def test_some_mutations(name: str, tmp_path: Path):
    if name == "Parquet":
        pytest.importorskip("pyarrow")
    cases = harness.QUICK // 5 if name == "Parquet" else harness.QUICK  # each has a file with columns
    harness.check(name, READERS[name], cases, tmp_path / "case")


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_mutations(name: str, tmp_path: Path):
    if name == "Parquet":
        pytest.importorskip("pyarrow")
    harness.check(name, READERS[name], harness.LONG, tmp_path / "case")
