"""What people bring that is no data, or too much, or that fails meanwhile: said in words, nothing lost."""

import errno
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("starlette")
from tests.serve.test_connection import rest
from tests.serve.test_votes import vote
from tests.serve.workspace import Place, serve_in, training_in, zipped
from tests.tiny import TEXT
from tsugiki.data import read_records
from tsugiki.errors import TsugikiError
from tsugiki.io import atomic
from tsugiki.serve import ApiError, RunRequest, Runs, job_worker
from tsugiki.serve import server as server_module

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no links as these"),
    pytest.mark.usefixtures("no_uploads"),
]

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
TURNS = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]


def sent(place: Place, name: str, content: bytes) -> str:
    answer = place.send(name, content)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["filename"])


def asked(place: Place, what: str, name: str, **more: Any) -> Any:
    """The answer to a question about a text that was sent."""
    named = {} if what == "look" else {"name": "first", **more}
    if what == "start":
        return place.begin(uploads=[name], **named)
    return place.post(f"train/{what}", {"uploads": [name], **named})


def refusal(answer: Any) -> str:
    """What is said of a request that cannot be done: one line without flags."""
    assert 400 <= answer.status_code < 500, answer.text
    message = str(answer.json()["error"]["message"])
    assert "\n" not in message
    assert "--" not in message
    return message


@pytest.mark.parametrize(
    ("name", "content", "fact"),
    [
        *((f"picture{suffix}", PICTURE, "not text") for suffix in (".txt", ".csv", ".jsonl")),
        ("picture.epub", PICTURE, "zip"),
        ("locked.zip", zipped({"a.txt": b"a"}, encrypted=True), "password"),
        ("pictures.zip", zipped({"a.png": PICTURE}), "contains no .txt"),
        ("table.csv", b"prompt,prompt\na,b\n", "'prompt' twice"),
        ("table.csv", b"prompt,completion\na,b\nc,d,e\n", "csv:3 has 3 cells"),
        ("rows.jsonl", b'{"text": "a"}\n{"text":\n', "jsonl:2 cannot be read"),
        ("rows.jsonl", b'{"text": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deeply"),
    ],
)
def test_what_is_no_data_is_said_when_it_is_looked_at(place: Place, name: str, content: bytes, fact: str):
    stored = sent(place, name, content)
    message = refusal(asked(place, "look", stored))
    assert message.startswith(name)
    assert fact in message
    assert asked(place, "settings", stored).status_code == 200  # which does not read it
    assert (place.uploads / stored).read_bytes() == content


@pytest.mark.parametrize(
    ("name", "content", "kind", "fact"),
    [
        ("sizes.csv", b"id,size\n1,2\n", "table", "names none of the columns"),
        ("header.csv", b"prompt,completion\n", "texts", "header.csv is empty"),
        ("talk.jsonl", json.dumps({"messages": TURNS}).encode(), "conversations", "put the user's turn before it"),
        ("pairs.jsonl", b'{"prompt": "a?", "chosen": "b", "rejected": "b"}\n' * 9, "pairs", "have the same tokens"),
    ],
)
def test_data_that_teach_nothing_are_recognised_and_their_preview_says_why(
    place: Place, name: str, content: bytes, kind: str, fact: str
):
    stored, more = sent(place, name, content), {"preference": "dpo", "chat_template": "auto"}
    assert asked(place, "look", stored).json()["kind"] == kind
    shown = asked(place, "settings", stored, **(more if kind == "pairs" else {})).json()
    settings = yaml.safe_load(shown["yaml"])
    with pytest.raises(TsugikiError, match=fact):  # in this process; the page's is one of its own
        job_worker.preview(settings)


def test_64_mb_are_taken_and_65_mb_are_refused_before_they_are_written(place: Place):
    line = b"a line of a long text\n"
    for size, status in ((64_000_000, 200), (65_000_000, 413)):
        content = (line * (size // len(line) + 1))[:size]
        for measured in (True, False):
            answer = place.send(f"{size}.txt", content, measured=measured)
            assert answer.status_code == status, answer.text
    assert "64,010,000 bytes" in refusal(answer)
    assert [(path.name, path.stat().st_size) for path in place.uploads.iterdir()] == [("64000000.txt", 64_000_000)]


def test_a_zip_of_ten_thousand_files_is_read(place: Place):
    stored = sent(place, "many.zip", zipped({f"a/{number}.txt": b"a %d" % number for number in range(10_000)}))
    assert asked(place, "look", stored).json()["kind"] == "texts"
    assert sum(1 for _record in read_records(str(place.uploads / stored))) == 10_000


def test_the_same_bytes_under_another_suffix_are_another_text(place: Place):
    table = b"frage,antwort\nWo?,Hier.\n"
    assert [sent(place, name, table) for name in ("a.txt", "a.csv", "b.csv")] == ["a.txt", "a.csv", "a.csv"]
    assert asked(place, "look", "a.csv").json()["kind"] == "table"


def test_a_text_that_was_removed_is_named_in_every_refusal_and_no_run_starts(place: Place):
    stored = sent(place, "a.txt", TEXT.encode())
    assert place.discard(stored).json()["deleted"]
    for what in ("look", "settings", "preview", "start"):
        assert "'a.txt'" in refusal(asked(place, what, stored))
    assert not (place.directory / "runs").exists()


def test_a_disk_that_is_full_leaves_no_half_file(place: Place, monkeypatch: pytest.MonkeyPatch):
    before = sent(place, "a.txt", TEXT.encode())
    place.post("vote", vote("a", "b"))
    kept = place.get("votes/file").content

    def full(_path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic, "flush", full)
    for answer in (place.send("b.txt", b"b"), place.post("vote", vote("a", "c")), asked(place, "start", before)):
        assert "make room" in refusal(answer)
    monkeypatch.undo()
    assert [path.name for path in place.uploads.iterdir()] == ["a.txt"]
    assert place.get("votes/file").content == kept
    assert place.runs() == []
    assert asked(place, "settings", before).status_code == 200
    place.post("votes/remove", {})


def test_a_server_that_stops_while_a_text_is_sent(
    served_files: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server_module, "_LAST_SECONDS", 0.1)
    with serve_in(tmp_path / "work", served_files, stop_seconds=0) as place:
        host, port = place.running.url.removeprefix("http://").split(":")
        head = f"POST /v1/files HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: multipart/form-data; boundary=a\r\n"
        head += "expect: 100-continue\r\ncontent-length: 2000000\r\n\r\n"
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(head.encode())
            assert connection.recv(65536).startswith(b"HTTP/1.1 100")  # the server waits for the text
            connection.sendall(b"a" * 1_000_000)
            place.running.server.end()
            answer = rest(connection)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"the server is stopping" in answer
        assert [*place.uploads.glob("*")] == []


def test_people_who_train_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Runs, "watch", lambda _self: None)
    training, together = training_in(tmp_path), threading.Barrier(8)
    found: list[Any] = []

    def start(name: str) -> None:
        prepared = training.prepare(RunRequest(name=name, texts=["a.txt"]))
        together.wait()
        try:
            found.append(training.runs.summary(training.start(prepared))["place"])
        except ApiError as error:
            found.append(error.code)

    threads = [threading.Thread(target=start, args=[name]) for name in "aabcdefg"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, found)) == ["1", "2", "3", "4", "5", "6", "None", "exists"]
    assert len(training.runs.processes.commands) == 1  # type: ignore[attr-defined]
    assert len(training.runs.queue.names()) == 6


FULL = """
import errno, os, sys
flush, full = os.fsync, {full!r}
def fsync(file):
    if os.path.exists(full) and "checkpoint" in os.readlink(f"/proc/self/fd/{{file}}"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return flush(file)
os.fsync = fsync
"""
"""Module that Python imports at its start: while there is a file, the disk is full for checkpoints."""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not name open files")
def test_a_disk_that_fills_while_a_run_writes(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    full = tmp_path / "full"
    (tmp_path / "sitecustomize.py").write_text(FULL.format(full=str(full)))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    full.touch()
    texts = [f"novels/{number}.txt" for number in range(4)]
    body = {"name": "filled", "texts": texts, "epochs": 5, "block_size": 32, "batch_size": 2}
    assert place.begin(**body).json()["run"]["place"] is None
    failed = _ended(place)
    assert (failed["state"], failed["mend"], failed["can_resume"]) == ("failed", "resume", True)
    assert "the disk is full" in failed["reason"]
    full.unlink()
    assert place.jobs("runs/filled", "/resume").json()["run"]["place"] is None
    assert _ended(place)["state"] == "finished"


def _ended(place: Place) -> Any:
    while (shown := place.get("run", name="runs/filled").json())["state"] in ("starting", "running"):
        time.sleep(0.1)
    return shown
