"""Documents in: encodings told apart, errors that name file and line, splits by document."""

import json
from pathlib import Path

import pytest

from tsugiki import TsugikiError
from tsugiki.data.texts import Document, fingerprint, read_documents, refuse_overlap, split_documents

SENTENCE = "庭の梅が咲いた。\r\nまだ寒い。ABC\r\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp932", "euc_jp"])
@pytest.mark.parametrize("text", [SENTENCE, "あ", "カタカナと①", "plain ascii"])
def test_encodings_are_told_apart(encoding: str, text: str, tmp_path: Path):
    if encoding == "euc_jp":
        text = text.replace("①", "一")
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(encoding))
    assert read_documents(path) == [Document(text.replace("\r\n", "\n"), str(path))]


@pytest.mark.parametrize("data", [b"\xff\x00\x81", b"GIF89a\x00\x00\xff\xfe\x80", "字".encode("utf-32-le")])
def test_what_is_no_text_is_named(data: bytes, tmp_path: Path):
    (tmp_path / "bad.txt").write_bytes(data)
    with pytest.raises(TsugikiError, match=r"bad.txt is not text in UTF-8"):
        read_documents(tmp_path)


def test_a_folder_is_read_in_order_of_names(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("二")
    (tmp_path / "sub" / "c.jsonl").write_text('{"text": "三"}\n\n{"text": "四", "title": "x"}\n')
    (tmp_path / "a.txt").write_text("一")
    (tmp_path / "notes.md").write_text("not read")
    (tmp_path / "blank.txt").write_text(" \n")
    documents = read_documents(tmp_path)
    assert [d.text for d in documents] == ["一", "二", "三", "四"]
    assert documents[-1].source.endswith("c.jsonl:3")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": \n', "a.jsonl:2 is not JSON"),
        ("a.jsonl", '{"text": "x"}\n["x"]\n', 'a.jsonl:2 has no "text"'),
        ("a.jsonl", '{"text": 5}\n', 'a.jsonl:1 has no "text"'),
        ("a.txt", "", "is empty"),
        ("a.txt", " \n\u3000", "is empty"),
        ("a.pdf", "x", "'.pdf' is not read|.pdf is not read"),
    ],
)
def test_bad_files_are_named_with_their_line(name: str, content: str, said: str, tmp_path: Path):
    (tmp_path / name).write_text(content)
    with pytest.raises(TsugikiError, match=said):
        read_documents(tmp_path / name)


def test_nothing_there(tmp_path: Path):
    with pytest.raises(TsugikiError, match="there is no such file"):
        read_documents(tmp_path / "nowhere")
    with pytest.raises(TsugikiError, match="holds no .txt or .jsonl"):
        read_documents(tmp_path)


def documents(count: int) -> list[Document]:
    return [Document(f"{i} " + "字" * (50 + 13 * i % 40), str(i)) for i in range(count)]


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_a_split_is_of_whole_documents_and_of_the_seed(fraction: float):
    everything = documents(40)
    train, held_out = split_documents(everything, fraction, seed=1)
    assert sorted(train + held_out, key=str) == sorted(everything, key=str)
    assert train
    assert held_out
    share = sum(len(d.text) for d in held_out) / sum(len(d.text) for d in everything)
    assert share <= max(fraction, 0.03)
    assert split_documents(everything, fraction, seed=1) == (train, held_out)
    assert fraction == 0.01 or split_documents(everything, fraction, seed=2) != (train, held_out)


def test_a_new_document_moves_no_other_by_much():
    few, more = (set(split_documents(documents(n), 0.5, seed=1)[1]) for n in (40, 41))
    assert len(few ^ more) <= 4


def test_a_single_document_gives_its_end_at_a_line():
    text = "".join(f"{i}行目\n" for i in range(100))
    train, held_out = split_documents([Document(text, "novel.txt")], 0.1, seed=0)
    assert train[0].text + held_out[0].text == text
    assert train[0].text.endswith("\n")
    assert 0.05 < len(held_out[0].text) / len(text) < 0.15
    with pytest.raises(TsugikiError, match="too short"):
        split_documents([Document("字", "a")], 0.1, seed=0)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_fractions_that_cannot_be(fraction: float):
    with pytest.raises(TsugikiError, match="held-out fraction"):
        split_documents(documents(3), fraction, seed=0)


def test_a_document_both_learned_and_measured_is_named():
    with pytest.raises(TsugikiError, match=r"copy.txt .held out. is also in the training data .0"):
        refuse_overlap(documents(3), [Document(documents(1)[0].text, "copy.txt")])


def test_fingerprint_is_of_texts_in_order():
    a, b = documents(2)
    assert fingerprint([a, b]) == fingerprint([Document(a.text, "elsewhere"), b])
    assert fingerprint([a, b]) != fingerprint([b, a])
    assert fingerprint([Document("ab", ""), Document("c", "")]) != fingerprint([Document("a", ""), Document("bc", "")])
    assert json.dumps(fingerprint([a])).startswith('"sha256:')
