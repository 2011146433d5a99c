"""The token store returns what was encoded, and tokenises the same content only once."""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.errors import refused
from tests.tiny import TEXT, byte_tokenizer
from tsugiki.data import (
    DEFAULT_TEMPLATE,
    Completion,
    Conversation,
    Document,
    Message,
    Record,
    TokenStore,
    encode_records,
    near_duplicates,
    open_store,
)
from tsugiki.data import store as store_module
from tsugiki.data.store import read_index

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
    index, expected = found.index, read_index(RECORDS)
    assert list(index.sources) == [record.source for record in RECORDS]
    assert index.characters.tolist() == [len(record.text) for record in RECORDS]
    assert index.splittable.tolist() == [isinstance(record, Document) for record in RECORDS]
    assert dict(index.fields[0]) == {"author": "A"}
    assert (index.signatures == expected.signatures).all()
    assert (index.digests == expected.digests).all()


def test_where_no_cache_can_be_written_another_place_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with refused("cannot write .*XDG_CACHE_HOME"):
        open_store(RECORDS, "key", byte_tokenizer(), "all", tmp_path / "file" / "tokens")


def test_a_store_depends_on_data_tokenizer_and_turns(tmp_path: Path):
    tokenizer = byte_tokenizer()
    first = open_store(RECORDS, "key", tokenizer, "all", tmp_path)
    again = open_store(iter(()), "key", tokenizer, "all", tmp_path)
    assert stored(again) == stored(first)
    for key, turns in (("other", "all"), ("key", "last")):
        assert stored(open_store(RECORDS[:1], key, tokenizer, turns, tmp_path)) == stored(first)[:1]
    tokenizer.add_tokens(["庭の"])
    assert stored(open_store(RECORDS[:1], "key", tokenizer, "all", tmp_path)) != stored(first)[:1]
    tokenizer = byte_tokenizer(DEFAULT_TEMPLATE)
    assert stored(open_store(RECORDS[:2], "key", tokenizer, "all", tmp_path)) != stored(first)[:2]
    tokenizer.add_tokens([f"<extra {i}>" for i in range(1 << 16)])
    found = open_store([Document("枝<extra 65535>", "a")], "key", tokenizer, "all", tmp_path)
    assert found.ids.max() == len(tokenizer) - 1 > 1 << 16, "larger ids need 32 bits"


def test_all_records_without_targets_are_named_and_no_part_of_a_store_is_left(tmp_path: Path):
    tokenizer = byte_tokenizer("{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}")
    silent = [
        Conversation((Message("user", "?"), Message("assistant", "…", in_loss=False)), f"t.jsonl:{i}") for i in range(7)
    ]
    with refused(r"t.jsonl:0, .*t.jsonl:4 and 2 more: "):
        open_store([RECORDS[0], *silent], "key", tokenizer, "all", tmp_path)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_system_messages_do_not_make_near_duplicates():
    system = Message("system", "よい助手として、丁寧な日本語で、簡潔に、正確に、根拠を添えて答えること。" * 3)
    asked = {"梅はいつ咲きますか": "二月から三月です", "鋸の手入れは": "脂を拭き、油を引きます"}
    turns = [(system, Message("user", ask), Message("assistant", answer)) for ask, answer in asked.items()]
    assert near_duplicates(read_index([Conversation(talk, "a") for talk in turns]).signatures) == []


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "a bit": flip,
    "cut off": lambda data: data[:10],
    "longer": lambda data: data + b"0",
    "missing": lambda data: None,
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *itertools.product(("store.json", *sorted(store_module._FILES)), ("a bit", "missing")),
        ("ids.bin", "cut off"),
        ("ids.bin", "longer"),
    ],
)
def test_a_damaged_store_is_written_again(name: str, damage: str, tmp_path: Path):
    tokenizer = byte_tokenizer()
    expected = stored(open_store(RECORDS[:12], "key", tokenizer, "all", tmp_path))
    (path,) = tmp_path.glob(f"*/{name}")
    damaged = DAMAGE[damage](path.read_bytes())
    path.unlink()
    if damaged is not None:
        path.write_bytes(damaged)
    with pytest.warns(UserWarning, match="damaged"):
        found = open_store(RECORDS[:12], "key", tokenizer, "all", tmp_path)
    assert stored(found) == expected
    assert stored(open_store(iter(()), "key", tokenizer, "all", tmp_path)) == expected


def test_a_large_file_is_read_whole_only_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tokenizer, read = byte_tokenizer(), set[str]()
    changed = store_module.changed_files
    monkeypatch.setattr(store_module, "_LARGE", 100)
    monkeypatch.setattr(store_module, "changed_files", lambda *given: read.update(given[1]) or changed(*given))
    expected = stored(open_store(RECORDS, "key", tokenizer, "all", tmp_path))
    (ids,) = tmp_path.glob("*/ids.bin")

    def files_read() -> set[str]:
        read.clear()
        assert stored(open_store(iter(RECORDS), "key", tokenizer, "all", tmp_path)) == expected
        return set(read)

    assert files_read() == set()
    ids.write_bytes(ids.read_bytes())
    assert [files_read(), files_read()] == [{"ids.bin"}, set()]
    (ids.parent / "checked.json").write_text("{")
    assert files_read() == store_module._FILES
    ids.write_bytes(flip(ids.read_bytes()))
    with pytest.warns(UserWarning, match="damaged"):
        files_read()


# Several processes ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_of_several_processes_one_writes_and_the_others_wait_for_it(tmp_path: Path):
    tokenizer = byte_tokenizer()
    records = RECORDS[:70]
    cache, log = tmp_path / "cache", tmp_path / "log"
    expected = stored(open_store(records, "key", tokenizer, "all", tmp_path / "other"))

    def slowly() -> Iterator[Record]:
        with log.open("a") as lines:
            lines.write("written\n")
        for record in records:
            time.sleep(0.003)
            yield record

    def started() -> int:
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                os._exit(stored(open_store(slowly(), "key", tokenizer, "all", cache)) != expected)
            os._exit(2)
        return child

    children = [started() for _ in range(6)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6
    assert log.read_text() == "written\n"
    assert not list(cache.glob(".*.part"))
