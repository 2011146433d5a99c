"""Splits contain whole records, depend on the seed, and keep near-duplicates on one side."""

import hashlib
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from tests.errors import assert_refused
from tsugiki.data import (
    Completion,
    Document,
    FieldCondition,
    RecordIndex,
    near_duplicates,
    parse_held_out,
    split_document,
    split_records,
)
from tsugiki.data.splits import near_duplicate_records, numbered_facts
from tsugiki.data.store import read_index


def sentence(seed: int, length: int = 60) -> str:
    """Random characters, different for each seed."""
    return "".join(chr(0x4E00 + i) for i in np.random.default_rng(seed).integers(0, 3000, length))


def documents(count: int) -> list[Document]:
    return [
        Document(sentence(i, 60 + 13 * i % 40), f"f:{i}", {"author": "AB"[i % 2], "title": str(i)})
        for i in range(count)
    ]


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_records_are_taken_by_the_digest_of_seed_and_text(fraction: float):
    records = documents(40)
    texts = [record.text for record in records]
    digests = [hashlib.sha256(b"3\0" + hashlib.sha256(text.encode()).digest()[:16]).digest() for text in texts]
    left, expected = fraction * sum(map(len, texts)), set[int]()
    for number in sorted(range(40), key=digests.__getitem__):
        if len(texts[number]) <= left:
            expected.add(number)
            left -= len(texts[number])
    found = set(split_records(read_index(records), fraction, 3, []).tolist())
    assert found == (expected or {min(range(40), key=lambda i: len(texts[i]))})


def of_lengths(lengths: list[int]) -> RecordIndex:
    return read_index([Document(sentence(i, length), f"f:{i}") for i, length in enumerate(lengths)])


@pytest.mark.parametrize("seed", range(2))
def test_automatically_several_documents_near_the_median_length_are_held_out(seed: int):
    lengths = [200] * 12 + [1000] * 20 + [9000] * 4
    index = of_lengths(lengths)
    chosen = split_records(index, parse_held_out("auto"), seed, [])
    assert len(chosen) == 6
    assert {lengths[number] for number in chosen} == {1000}
    assert sum(lengths[number] for number in chosen) <= 0.25 * sum(lengths)
    few = split_records(of_lengths([1000] * 8), parse_held_out("auto"), seed, [])
    assert len(few) == 2, "not more than a quarter of the text"
    assert len(split_records(of_lengths([1000] * 3), parse_held_out("auto"), seed, [])) == 1
    assert len(split_records(of_lengths([1000] * 200), parse_held_out("auto"), seed, [])) == 20, "a tenth"


def facts(count: int, phrasings: int) -> RecordIndex:
    rows = [(fact, i) for fact in range(count) for i in range(phrasings)]
    return read_index(
        [Completion(sentence(100 * fact + i, 12), sentence(fact, 120), f"f:{fact}.{i}") for fact, i in rows]
    )


@pytest.mark.parametrize("seed", range(2))
def test_of_the_phrasings_of_a_fact_one_is_trained_on(seed: int):
    index = facts(20, 3)
    assert near_duplicates(index.signatures), "the answers are long and equal"
    groups = near_duplicate_records(index)
    assert groups == []
    for wanted in (parse_held_out("auto"), 0.3, 0.6):
        chosen = split_records(index, wanted, seed, groups)
        trained = {number // 3 for number in range(60) if number not in set(chosen.tolist())}
        assert {number // 3 for number in chosen.tolist()} <= trained
    mixed = read_index([*(Completion(sentence(i, 20), sentence(900 + i), f"o:{i}") for i in range(30))])
    assert len(split_records(mixed, 0.1, seed, [])) == 3, "rows of different answers are chosen by their share"


def test_answers_that_many_rows_have_are_labels_and_no_facts():
    labels = read_index([Completion(sentence(i, 30), ("good", "bad")[i % 2], f"f:{i}") for i in range(40)])
    assert len(set(numbered_facts(labels).tolist())) == 40
    assert len(set(numbered_facts(facts(20, 3)).tolist())) == 20
    assert len(set(numbered_facts(of_lengths([50] * 5)).tolist())) == 5


def test_a_single_record_or_near_duplicates_only_cannot_be_split():
    index = read_index([Document(sentence(0), str(i)) for i in range(3)])
    assert_refused("near-duplicates", split_records, index, 0.5, 0, near_duplicates(index.signatures))
    assert_refused("f:0", split_records, read_index(documents(1)), 0.5, 0, [])


def test_a_condition_holds_out_matching_records_and_their_near_duplicates():
    records = [*documents(6), Document(documents(6)[1].text, "f:copy", {"author": "C"})]
    index = read_index(records)
    assert split_records(index, FieldCondition("author", "B"), 0, []).tolist() == [1, 3, 5]
    near = near_duplicates(index.signatures)
    assert split_records(index, FieldCondition("author", "B"), 0, near).tolist() == [1, 3, 5, 6]
    assert split_records(index, FieldCondition("title", "2"), 0, []).tolist() == [2]


def test_a_value_is_the_same_however_it_is_composed_and_spaced():
    names = ["ガルシン", unicodedata.normalize("NFD", "ガルシン"), " ガル シン", "ｶﾞﾙｼﾝ", "\ufeffガル\u200bシン"]
    authors = [*names, "カルシン", "太宰春台", ""]
    index = read_index([Document(sentence(i), f"f:{i}", {"author": name}) for i, name in enumerate(authors)])
    for name in names:
        chosen = split_records(index, parse_held_out(f"author={name}"), 0, [])  # type: ignore[arg-type]
        assert chosen.tolist() == list(range(len(names)))
    assert_refused("author=", parse_held_out, "author=\u200b")


@pytest.mark.parametrize(
    ("records", "field", "fact"),
    [
        (documents(4), "author=X", "author=X.* A, B"),
        (documents(4), "year=1900", "year.* author, title"),
        (documents(4)[::2], "author=A", "author=A"),
        ([Document(sentence(i), "a") for i in range(2)], "author=A", "no fields"),
    ],
)
def test_a_condition_that_no_record_or_every_record_fulfils(records: list[Document], field: str, fact: str):
    assert_refused(fact, split_records, read_index(records), parse_held_out(field), 0, [])  # type: ignore[arg-type]


def test_parsing_held_out(tmp_path: Path):
    assert parse_held_out(0.1) == parse_held_out("10%") == parse_held_out("１０ ％") == 0.1
    assert parse_held_out("author=泉鏡花") == FieldCondition("author", "泉鏡花")
    assert parse_held_out("other.jsonl") == Path("other.jsonl")
    strange = tmp_path / "a=b.txt"
    strange.write_text("x")
    assert parse_held_out(str(strange)) == strange
    for bad in ("author=", "=x"):
        assert_refused("author=… or title=…", parse_held_out, bad)
    assert parse_held_out("none") is parse_held_out(0) is None
    for share in (1, -0.1, 1.5, float("nan"), "0%", "100%"):
        assert_refused("held_out", parse_held_out, share)


def test_a_single_document_is_split_at_a_line_end():
    text = "".join(f"{i}行目\n" for i in range(100))
    train, held_out = split_document(Document(text, "novel.txt"), 0.1)
    assert train.text + held_out.text == text
    assert train.text.endswith("\n")
    assert 0.05 < len(held_out.text) / len(text) < 0.15
    assert_refused("too short", split_document, Document("字", "a"), 0.1)


def test_fingerprints_cover_texts_in_order():
    index, moved = read_index(documents(3)), read_index([Document(one.text, "elsewhere") for one in documents(3)])
    assert index.fingerprint(np.arange(3)) == moved.fingerprint(np.arange(3))
    assert index.fingerprint(np.array([0, 1])) != index.fingerprint(np.array([1, 0]))
