"""Reading records: encodings are detected, files are read in order and lazily, errors name file and line."""

import json
import random
import re
import sys
import tracemalloc
import zipfile
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.errors import assert_refused
from tests.files import write_rows
from tsugiki.data import Completion, Conversation, Document, Message, Reading, content_key, decode, read_records

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "cp932", "euc_jp"]


def read(data: str | Path) -> list[Any]:
    return list(read_records(data))


def turns(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings_are_detected(encoding: str, tmp_path: Path):
    path = tmp_path / "a.txt"
    for text in ("庭の梅が咲いた。\r\nまだ寒い。ABC\r\n", "あ", "plain", *(["カタカナと①"] * (encoding != "euc_jp"))):
        path.write_bytes(text.encode(encoding))
        assert read(path) == [Document(text.replace("\r\n", "\n"), str(path))]


@pytest.mark.parametrize(("encoding", "end"), [*zip(ENCODINGS, ["\n", "\r\n", "\r", "\n", "\r\n"], strict=True)])
def test_encodings_of_files_of_lines(encoding: str, end: str, tmp_path: Path):
    lines = ["朝の庭", "", "ABC", *(f"{i}番目の石、{'水' * (i % 50)}" for i in range(1000)), "終"]
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        end.join(line and json.dumps({"text": line}, ensure_ascii=False) for line in lines).encode(encoding)
    )
    assert read(path) == [Document(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line]
    path = tmp_path / "a.csv"
    path.write_bytes(end.join(["text", *lines]).encode(encoding))
    assert read(path) == [Document(line, f"{path}:{number}") for number, line in enumerate(lines, 2) if line]


HALF_WIDTH = ["ｶﾅ", "ｱｲｳｴｵｶ", "ｶﾌﾞｼｷｶﾞｲｼｬ ｻｸﾗ\nﾅﾏｴ,ﾄｼ\n", "ﾊﾙﾉ ﾋﾞｮｰﾌﾞ｡ ABC 123", "ｱｲｳｴ､ｵｶｷｸｹｺ ｻｼｽ｡" * 20]
KANJI = ["海", "校長", "間……", "あいうえおかきく", "カキクケコ、ソウ。", "、。「」ー・、。", "中学校長会議", "　坂"]


@pytest.mark.parametrize(("encoding", "texts"), [("cp932", HALF_WIDTH), ("euc_jp", KANJI)])
def test_half_width_katakana_and_kanji_are_not_confused(encoding: str, texts: list[str], tmp_path: Path):
    for text in texts:
        path = tmp_path / "a.txt"
        path.write_bytes(text.encode(encoding))
        assert read(path) == [Document(text, str(path))]
        path = tmp_path / "a.jsonl"
        path.write_bytes(json.dumps({"text": text}, ensure_ascii=False).encode(encoding))
        assert encoding == "euc_jp" or read(path) == [Document(text, f"{path}:1")]


@pytest.mark.parametrize(("length", "most_wrong"), [(2, 15), (4, 6), (10, 2), (60, 0)])
def test_parts_of_sentences_in_both_japanese_encodings(length: int, most_wrong: int):
    texts = [path.read_text() for path in sorted(Path(str(files("tsugiki"))).glob("assets/*/[0-9]*.txt"))]
    writable = "\n".join(texts).encode("euc_jp", "ignore").decode("euc_jp").encode("cp932", "ignore").decode("cp932")
    sentences = [part for part in re.split("[\n。]", writable) if len(part) >= min(length, 20)]
    parts = [part[:length] for part in random.Random(length).sample(sentences, 300)]
    for encoding in ("cp932", "euc_jp"):
        wrong = [part for part in parts if decode(part.encode(encoding), "a.txt")[0] != part]
        assert len(wrong) <= (most_wrong if encoding == "euc_jp" else 1), wrong


MAIL = "Subject: meeting\n\n三時に駅前の喫茶店で。\nﾃﾚﾋﾞは①番の部屋、髙橋さんへ。\nplain $B text\n"


def as_windows_does(text: str, encoding: str) -> bytes:
    """Encode a text with ① and 髙 in rows 13 and 92 of JIS X 0208, which Python does not."""
    own = {"①": bytes([0x2D, 0x21]), "髙": bytes([0x7C, 0x62])}
    for character, pair in own.items():
        own[character] = bytes(byte | 0x80 for byte in pair) if encoding == "euc_jp" else b"\x1b$B" + pair + b"\x1b(B"
    return b"".join(own.get(character) or character.encode(encoding) for character in text)


@pytest.mark.parametrize("encoding", ["iso2022_jp_ext", "euc_jp"])
def test_mail_and_pages_with_characters_of_windows(encoding: str, tmp_path: Path):
    coded = as_windows_does(MAIL, encoding)
    (tmp_path / "a.txt").write_bytes(b"x" * 5000 + b"\n" + coded)
    assert read(tmp_path / "a.txt")[0].text == "x" * 5000 + "\n" + MAIL
    (tmp_path / "a.csv").write_bytes(b"text\r\n" + coded.replace(b"\n", b"\r\n"))
    assert [record.text for record in read(tmp_path / "a.csv")] == MAIL.replace("\n\n", "\n").split("\n")[:-1]


@pytest.mark.parametrize("text", ["\x1b[31mred\x1b(B\x1b[m, $B and (J", "\x1b$B in 日本語 is UTF-8"])
def test_other_escape_sequences_are_text(text: str, tmp_path: Path):
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert read(tmp_path / "a.txt")[0].text == text


@pytest.mark.parametrize(("encoding", "escape"), [("euc_jp", b""), ("iso2022_jp", b"\x1b$B")])
def test_a_damaged_text_is_an_error_and_not_half_width_katakana(encoding: str, escape: bytes, tmp_path: Path):
    lines = ["次の停留所で降りて、坂を上がる。".encode(encoding)] * 20
    lines[7] = escape + lines[7].removeprefix(escape)[1:]
    (tmp_path / "a.txt").write_bytes(b"\n".join(lines))
    assert_refused(r"a\.txt:8 is not text.*ISO-2022-JP, EUC-JP", read, tmp_path / "a.txt")


def test_a_short_page_has_the_encoding_that_it_declares_if_it_can(tmp_path: Path):
    for encoding, declared, text in [
        ("euc_jp", "EUC-JP", "夏"),
        ("cp932", "x-sjis", "ｺｶｻﾁ"),
        ("cp932", "euc-jp", "春の海"),
    ]:
        (tmp_path / "a.html").write_bytes(f'<meta charset="{declared}"><p>{text}'.encode(encoding))
        assert [record.text for record in read(tmp_path / "a.html")] == [text]


@pytest.mark.parametrize(("encoding", "short"), [("euc_jp", ["夏", "桜島"]), ("cp932", ["ｲﾆ", "ｺｶｻﾁ"])])
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_short_text_has_the_encoding_of_the_other_files(encoding: str, short: list[str], kind: str, tmp_path: Path):
    texts = [*short, "朝の市場で鯵と大根を買い、川沿いの道を帰った。"]
    contents = {f"{number}.txt": text.encode(encoding) for number, text in enumerate(texts)}
    reading = Reading()
    for name, content in contents.items():
        if kind == "zip":
            with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
                archive.writestr(name, content)
        else:
            (tmp_path / name).write_bytes(content)
    assert [record.text for record in read_records(tmp_path, reading=reading)] == texts
    [(name, found)] = reading.encodings.items()
    assert (name, len(found)) == ({"euc_jp": "EUC-JP", "cp932": "Shift_JIS"}[encoding], 3)
    assert f"2.txt: read as {name}" in reading.notes()[0]


@pytest.mark.parametrize("data", [b"\xff\x00\x81", b"GIF89a\x00\x00\xff\xfe\x80", "字".encode("utf-32-le")])
def test_bytes_that_are_not_text_are_an_error(data: bytes, tmp_path: Path):
    (tmp_path / "bad.txt").write_bytes(data)
    assert_refused("bad.txt.*UTF-8", read, tmp_path)
    for name in ("bad.jsonl", "bad.csv"):
        (tmp_path / name).write_bytes(b"text\na\n" + data)
        assert_refused(rf"{name}:3 .*UTF-8.*convert", read, tmp_path / name)
    (tmp_path / "bad.csv").write_bytes("text\n字\n".encode("utf-16")[:-1])
    assert_refused("bad.csv:2 ", read, tmp_path / "bad.csv")
    (tmp_path / "a.txt").write_bytes(b"\xef")  # the beginning of a byte order mark
    assert content_key(tmp_path / "a.txt")
    assert_refused(r"a\.txt:1 is not text", read, tmp_path / "a.txt")


def test_csv_cells_of_many_lines(tmp_path: Path):
    path = tmp_path / "a.csv"
    rows = ["\ufefftitle, prompt ,completion", 'x,"a ""b"", c\r\nd",e', "", ",,", 'y,f,"g', "", 'h"', "z,i,j"]
    path.write_bytes("\r\n".join(rows).encode())
    assert read(path) == [
        Completion('a "b", c\nd', "e", f"{path}:2"),
        Completion("f", "g\n\nh", f"{path}:6"),
        Completion("i", "j", f"{path}:9"),
    ]
    assert [record.fields for record in read(path)] == [{"title": title} for title in "xyz"]
    path.write_text("text\n" + "b" * 300_000)
    assert len(read(path)[0].text) == 300_000


BAD = {
    "mixed": (
        "a.jsonl",
        json.dumps(turns("a", "b")) + '\n\n{"prompt": "a", "completion": "b"}\n',
        "a.jsonl:3 has prompt and completion.* line 1 has messages",
    ),
    "open quote": ("a.csv", 'text\nok\n"a\nb\n', "a.csv:3 .*CSV row: unexpected end of data"),
    "empty completion": ("a.csv", "prompt,completion\na,b\nc,\n", "a.csv:3 has an empty completion"),
    "blank": ("a.txt", " \n\u3000", "is empty"),
    "no names": ("a.csv", "When does it leave?,at eight\nWhere?,there\n", "at eight.*the first line must name"),
    "half a pair": (
        "a.jsonl",
        '{"id": "1", "instruction": "x", "the answer": "at eight"}',
        "has instruction but no output.*--columns 'output=the answer'",
    ),
    "JSON, cut off": ("a.json", '[{"text": "a"}, {"text": ', "a.json is not JSON: "),
    "JSON, deep": ("a.json", "[" * 100_000, "nested too deeply"),
    "JSON, deep row": ("a.json", '[{"text": ' + "[" * 200 + "]" * 200 + "}]", "nested too deeply"),
    "JSON, texts": ("a.json", '["a", "b"]', "element 1 is not a JSON object"),
    "JSON, settings": ("a.json", '{"name": "x", "version": 1}', "none of the fields text, .*--columns"),
    "JSON, blank": ("a.json", "", "is empty"),
    "no parquet": ("a.parquet", "x", "a.parquet cannot be read as Parquet"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_with_their_line(case: str, tmp_path: Path):
    name, content, fact = BAD[case]
    (tmp_path / name).write_text(content)
    assert_refused(fact, read, tmp_path / name)


def test_missing_data(tmp_path: Path):
    for name in (tmp_path / "nowhere", "./nowhere", "no/such/folder", "nowhere.jsonl", "~/no", "csv"):
        assert_refused(re.escape(Path(name).name), read_records, name)
    assert_refused(r"\.txt, .*\.epub, .*\.parquet or \.zip", read_records, tmp_path)
    for name in ("a" * 5000, "~nobody-has-this-name/a", "a\0b"):
        for use in (content_key, read_records):
            assert_refused("no data at|no file or folder", use, name)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_files_are_not_held_in_memory(kind: str, tmp_path: Path):
    path = tmp_path / f"big.{kind}"
    texts = [f"{i} " + "字" * 2000 for i in range(1000)]
    if kind == "jsonl":
        write_rows(path, [{"text": text} for text in texts])
    elif kind == "csv":
        path.write_text("text\n" + "\n".join(texts))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    list(islice(read_records(path), 3))
    tracemalloc.start()
    count = sum(len(record.text) > 1000 for record in read_records(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 1000
    assert peak < 3_000_000, "the file has 6 MB"


def test_parquet(tmp_path: Path):
    import pyarrow
    import pyarrow.parquet

    def write(name: str, table: Any) -> Path:
        pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / name)
        return tmp_path / name

    talks = [turns("a", "b")["messages"]] * 2
    path = write("a.parquet", {"messages": talks, "source": ["x", None], "image": [b"", b""]})
    expected = (Message("user", "a"), Message("assistant", "b"))
    assert read(path) == [Conversation(expected, f"{path}:{row}") for row in (1, 2)]
    assert [record.fields for record in read(path)] == [{"source": "x"}, {}]
    path = write("many.parquet", {"text": [str(i) for i in range(1000)]})
    assert [record.text for record in read(path)] == [str(i) for i in range(1000)]
    assert read(path)[-1].source == f"{path}:1000"
    for table, fact in (
        ({"id": [1], "content": ["a"]}, "x.parquet:1 .*text, .*content"),
        ({"text": pyarrow.array([None, None], pyarrow.string())}, "x.parquet:1 .*null.*text"),
        ({"text": pyarrow.array([], pyarrow.string())}, "x.parquet is empty"),
        ({"text": ["a", None], "prompt": [None, "b"], "completion": [None, "c"]}, "x.parquet:2 .*prompt.*completion"),
    ):
        assert_refused(fact, read, write("x.parquet", table))


def test_a_parquet_file_that_unpacks_to_very_much_is_refused(tmp_path: Path):
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    value = random.Random(0).randbytes(100_000).hex()
    references = arrow.DictionaryArray.from_arrays(arrow.array([0] * 2000, arrow.int32()), arrow.array([value]))
    path = tmp_path / "a.parquet"
    for column in (["a"] * 150_000, ["a" * 15_000_000], [value] * 200, references):
        parquet.write_table(arrow.table({"text": column}), path, compression="zstd")
        assert path.stat().st_size < 200_000
        assert_refused("a.parquet unpacks to more than 100 times its size", read, path)


def test_the_content_key_covers_names_and_bytes(tmp_path: Path):
    def key(**files: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, content in files.items():
            (folder / f"{name}.txt").write_text(content)
        (folder / "notes.doc").write_text(folder.name)
        return content_key(folder)

    assert key(a="x", b="y") == key(b="y", a="x")
    different = [key(a="x", b="y"), key(a="y", b="x"), key(a="xy"), key(a="x", c="y"), key(a="x", b="y", c="")]
    assert len(set(different)) == len(different)
    assert all(digest.startswith("sha256:") and len(digest) == 71 for digest in different)
    assert_refused("nowhere", content_key, tmp_path / "nowhere")


# The hub -------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], Any]:
    """Replaces `datasets.load_dataset` by a mapping of (name, split) to a data set or an error."""
    import datasets

    held: dict[tuple[str, str], Any] = {}

    def load_dataset(name: str, split: str) -> Any:
        found = held.get((name, split), datasets.exceptions.DatasetNotFoundError(f"'{name}' doesn't exist"))
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return held


def test_a_data_set_by_name(hub: dict[tuple[str, str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from datasets import Dataset

    rows = [turns("a", "b") | {"topic": "x", "score": 1}, turns("c", "d") | {"topic": "y", "score": 2}]
    hub["someone/talks", "train"] = Dataset.from_list(rows)
    hub["some/talks", "test"] = Dataset.from_list([{"text": "a"}])
    hub["someone/numbers", "train"] = Dataset.from_list([{"id": 1}])
    first, second = read("someone/talks")
    assert (first.source, second.source) == ("someone/talks:1", "someone/talks:2")
    assert first.messages == (Message("user", "a"), Message("assistant", "b"))
    assert second.fields == {"topic": "y"}
    assert read("some/talks:test") == [Document("a", "some/talks:test:1")]
    assert_refused("someone/numbers .*text, .*id", read, "someone/numbers")
    key = content_key("someone/talks")
    hub["someone/talks", "train"] = Dataset.from_list([*rows, turns("e", "f")])
    assert key != content_key("someone/talks") == content_key("someone/talks")
    (tmp_path / "someone" / "talks").mkdir(parents=True)
    (tmp_path / "someone" / "talks" / "a.txt").write_text("here")
    monkeypatch.chdir(tmp_path)
    assert [record.text for record in read("someone/talks")] == ["here"], "a folder of that name goes first"


def test_errors_of_the_hub_are_one_line(hub: dict[tuple[str, str], Any]):
    hub["far/away", "train"] = ConnectionError("Couldn't reach 'away' on the Hub")
    hub["a/c", "train"] = generation = RuntimeError("An error occurred while generating")
    generation.__cause__ = ValueError("line 3 is broken")
    hub["a/b", "dev"] = ValueError("Unknown split \"dev\". Should be one of ['train'].\nmore")
    for name, fact in {
        "nobody/nothing": "nobody/nothing.* hub",
        "far/away": "far/away.* reached",
        "a/b:dev": r"the data set a/b:dev cannot be read: Unknown split \"dev\". Should be one of \['train'\]",
        "a/c": "a/c .*line 3 is broken",
    }.items():
        for function in (read, content_key):
            assert_refused(fact, function, name)


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    for data in ("some/talks", tmp_path / "a.parquet"):
        assert_refused(rf"{data}.* pip install 'tsugiki\[datasets\]'", read, data)
