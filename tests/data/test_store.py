"""The token store returns what was encoded, and tokenises the same content only once."""

from pathlib import Path

import pytest

from tests.tiny import TEXT, byte_tokenizer
from tsugiki import TsugikiError
from tsugiki.data import store as store_module
from tsugiki.data.encoding import encode_records
from tsugiki.data.records import Completion, Conversation, Document, Message, Record
from tsugiki.data.store import TokenStore, open_store, read_index

RECORDS: list[Record] = [
    Document("庭の枝。", "a.txt", {"author": "A"}),
    Completion("問 ", "答え", "b.jsonl:1"),
    *(Document(TEXT[i : i + 40 + i], f"c.jsonl:{i}") for i in range(100)),
]


def stored(tokens: TokenStore) -> list[tuple[list[int], list[bool]]]:
    spans = zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
    return [(tokens.ids[a:b].tolist(), tokens.loss_mask[a:b].tolist()) for a, b in spans]


def test_what_is_read_back_is_what_was_encoded(tmp_path: Path):
    tokenizer = byte_tokenizer()
    done: list[int] = []
    found = open_store(iter(RECORDS), "key", tokenizer, "all", tmp_path, done.append)
    assert stored(found) == [(one.ids, one.loss_mask) for one in encode_records(tokenizer, RECORDS)]
    assert sum(done) == len(RECORDS)
    index = found.index
    assert index.sources == [record.source for record in RECORDS]
    assert index.characters.tolist() == [len(record.text) for record in RECORDS]
    assert index.splittable.tolist() == [isinstance(record, Document) for record in RECORDS]
    assert dict(index.fields[0]) == {"author": "A"}
    assert (index.signatures == read_index(RECORDS).signatures).all()
    assert (index.digests == read_index(RECORDS).digests).all()


def test_a_large_vocabulary_uses_int32(tmp_path: Path):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<extra {i}>" for i in range(1 << 16)])
    found = open_store([Document("枝<extra 65535>", "a")], "key", tokenizer, "all", tmp_path)
    assert found.ids.max() == len(tokenizer) - 1 > 1 << 16


def test_a_store_depends_on_data_tokenizer_and_turns(tmp_path: Path):
    tokenizer = byte_tokenizer()
    first = open_store(RECORDS, "key", tokenizer, "all", tmp_path)
    again = open_store(iter(()), "key", tokenizer, "all", tmp_path)
    assert stored(again) == stored(first)
    for key, turns in (("other", "all"), ("key", "last")):
        assert stored(open_store(RECORDS[:1], key, tokenizer, turns, tmp_path)) == stored(first)[:1]
    tokenizer.add_tokens(["庭の"])
    assert stored(open_store(RECORDS[:1], "key", tokenizer, "all", tmp_path)) != stored(first)[:1]
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "x"
    assert len(open_store(RECORDS[:2], "key", tokenizer, "all", tmp_path).index) == 2


def test_no_partial_store_is_left(tmp_path: Path):
    def broken():
        yield RECORDS[0]
        raise TsugikiError("line 2 is broken")

    with pytest.raises(TsugikiError, match="line 2"):
        open_store(broken(), "key", byte_tokenizer(), "all", tmp_path)
    assert list(tmp_path.iterdir()) == []
    leftover = tmp_path / "part"
    leftover.mkdir()
    found = open_store(RECORDS[:1], "key", byte_tokenizer(), "all", tmp_path)
    assert len(found.index) == 1


def test_all_records_without_targets_are_named(tmp_path: Path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}"
    silent = [
        Conversation((Message("user", "?"), Message("assistant", "…", in_loss=False)), f"t.jsonl:{i}") for i in range(7)
    ]
    with pytest.raises(TsugikiError, match=r"t.jsonl:0, .*t.jsonl:4 and 2 more: "):
        open_store([RECORDS[0], *silent], "key", tokenizer, "all", tmp_path)


def test_batches_are_limited_by_characters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    sizes: list[int] = []
    plain = store_module.encode_records

    def watched(tokenizer, records, turns):
        sizes.append(len(records))
        return plain(tokenizer, records, turns)

    monkeypatch.setattr(store_module, "encode_records", watched)
    monkeypatch.setattr(store_module, "_BATCH_CHARACTERS", 100)
    open_store(RECORDS, "key", byte_tokenizer(), "all", tmp_path)
    assert sum(sizes) == len(RECORDS)
    assert max(sizes) < 10


def test_system_messages_do_not_make_near_duplicates():
    system = Message("system", "よい助手として、丁寧な日本語で、簡潔に、正確に、根拠を添えて答えること。" * 3)
    talks = [
        Conversation((system, Message("user", ask), Message("assistant", answer)), ask)
        for ask, answer in (("梅はいつ咲きますか", "二月から三月です"), ("鋸の手入れは", "脂を拭き、油を引きます"))
    ]
    from tsugiki.data.duplicates import near_duplicates

    assert near_duplicates(read_index(talks).signatures) == []
