"""The token store returns what was encoded, and tokenises the same content only once."""

import itertools
import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tiny import TEXT, byte_tokenizer
from tsugiki import TsugikiError
from tsugiki.data import (
    DEFAULT_TEMPLATE,
    Completion,
    Conversation,
    Document,
    Message,
    Record,
    TokenStore,
    encode_records,
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
    index = found.index
    assert list(index.sources) == [record.source for record in RECORDS]
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
    tokenizer.chat_template = DEFAULT_TEMPLATE
    assert stored(open_store(RECORDS[:2], "key", tokenizer, "all", tmp_path)) != stored(first)[:2]


def test_no_partial_store_is_left(tmp_path: Path):
    def broken():
        yield RECORDS[0]
        raise TsugikiError("line 2 is broken")

    with pytest.raises(TsugikiError, match="line 2"):
        open_store(broken(), "key", byte_tokenizer(), "all", tmp_path)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_all_records_without_targets_are_named(tmp_path: Path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}"
    silent = [
        Conversation((Message("user", "?"), Message("assistant", "…", in_loss=False)), f"t.jsonl:{i}") for i in range(7)
    ]
    with pytest.raises(TsugikiError, match=r"t.jsonl:0, .*t.jsonl:4 and 2 more: "):
        open_store([RECORDS[0], *silent], "key", tokenizer, "all", tmp_path)


def test_system_messages_do_not_make_near_duplicates():
    system = Message("system", "よい助手として、丁寧な日本語で、簡潔に、正確に、根拠を添えて答えること。" * 3)
    talks = [
        Conversation((system, Message("user", ask), Message("assistant", answer)), ask)
        for ask, answer in (("梅はいつ咲きますか", "二月から三月です"), ("鋸の手入れは", "脂を拭き、油を引きます"))
    ]
    from tsugiki.data import near_duplicates

    assert near_duplicates(read_index(talks).signatures) == []


FILES = ("store.json", *sorted(store_module._FILES))


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "a bit": flip,
    "cut off": lambda data: data[:10],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"0",
    "missing": lambda data: None,
}


@pytest.mark.parametrize(
    ("name", "damage"),
    [*zip(FILES, itertools.cycle(DAMAGE), strict=False), *(("ids.bin", damage) for damage in DAMAGE)],
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
    monkeypatch.setattr(store_module, "_LARGE", 100)
    changed_files = store_module.changed_files

    def watched(folder: Path, digests: dict[str, str]) -> list[str]:
        read.update(digests)
        return changed_files(folder, digests)

    monkeypatch.setattr(store_module, "changed_files", watched)

    def files_read(folder: Path) -> set[str]:
        read.clear()
        assert stored(open_store(iter(RECORDS), "key", tokenizer, "all", folder)) == expected
        return set(read)

    expected = stored(open_store(RECORDS, "key", tokenizer, "all", tmp_path / "cache"))
    (ids,) = tmp_path.glob("cache/*/ids.bin")
    assert files_read(tmp_path / "cache") == set()
    ids.write_bytes(ids.read_bytes())
    assert files_read(tmp_path / "cache") == {"ids.bin"}
    assert files_read(tmp_path / "cache") == set()
    shutil.copytree(tmp_path / "cache", tmp_path / "copy")
    assert files_read(tmp_path / "copy") == store_module._FILES
    assert files_read(tmp_path / "copy") == set()
    (ids.parent / "checked.json").write_text("{")
    assert files_read(tmp_path / "cache") == store_module._FILES
    ids.write_bytes(flip(ids.read_bytes()))
    with pytest.warns(UserWarning, match="damaged"):
        files_read(tmp_path / "cache")


# Several processes ---------------------------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


def in_processes(count: int, work: Callable[[], object]) -> list[int]:
    """Run `work` in forked processes at the same time, and return their exit statuses: 0 if it raised nothing."""
    children = []
    for _ in range(count):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work()
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


@needs_fork
def test_processes_share_a_cache(tmp_path: Path):
    tokenizer = byte_tokenizer()
    records = RECORDS[:20]
    cache, log = tmp_path / "cache", tmp_path / "log"
    expected = stored(open_store(records, "key", tokenizer, "all", tmp_path / "other"))
    open_store(records, "key", tokenizer, "all", cache)
    next(cache.glob("*/ids.bin")).write_bytes(b"1")

    def slowly() -> Iterator[Record]:
        with log.open("a") as lines:
            lines.write("written\n")
        for record in records:
            time.sleep(0.01)
            yield record

    def work() -> None:
        with warnings.catch_warnings(action="ignore"):
            assert stored(open_store(slowly(), "key", tokenizer, "all", cache)) == expected

    assert in_processes(6, work) == [0] * 6
    assert log.read_text() == "written\n", "one process writes, the others wait for it"
    assert not list(cache.glob(".*.part"))


@needs_fork
def test_the_cache_of_a_killed_process_is_usable_and_its_leftovers_go(tmp_path: Path):
    tokenizer = byte_tokenizer()

    def killed() -> Iterator[Record]:
        yield from RECORDS[:70]
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_processes(1, lambda: open_store(killed(), "key", tokenizer, "all", tmp_path)) == [-signal.SIGKILL]
    assert list(tmp_path.glob(".*.part"))
    found = open_store(RECORDS[:5], "key", tokenizer, "all", tmp_path)
    assert len(found.index) == 5
    assert not list(tmp_path.glob(".*.part"))
