"""Texts that the page sends stay in one folder, have limits, and are no templates or code; foreign pages send none."""

import os
from types import SimpleNamespace
from urllib.parse import quote

import httpx2
import pytest
import yaml

pytest.importorskip("starlette")
import tsugiki.serve.uploads as uploads_module
from tests.serve.workspace import Place, zipped
from tests.tiny import TEXT, save_tiny
from tsugiki import TsugikiError
from tsugiki.data import read_records
from tsugiki.serve import MAX_BODY, file_id

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no links as these"),
    pytest.mark.usefixtures("no_uploads"),
]


def test_a_text_is_sent_used_and_removed(place: Place):
    names = [place.send("春の朝.TXT", text.encode()).json()["filename"] for text in (TEXT, TEXT[1:])]
    assert names == ["春の朝.txt", "春の朝-2.txt"]
    assert place.send("again.txt", TEXT.encode()).json()["filename"] == names[0]  # the same file is there once
    assert (place.uploads / names[0]).read_text(encoding="utf-8") == TEXT
    assert sorted(place.sent()) == sorted(names)
    shown = place.post("train/settings", {"name": "first", "uploads": names, "texts": ["a.txt"]}).json()
    data = yaml.safe_load(shown["yaml"])["data"]
    assert data == ["texts/a.txt", *(str(place.uploads / name) for name in names)]
    preview = place.post("train/preview", {"name": "first", "uploads": names[:1], "block_size": 32})
    assert preview.json()["rows"], preview.text
    for name in names:
        assert place.discard(name).json()["deleted"]
    assert list(place.uploads.iterdir()) == []
    assert place.running.adapters.names().count(".texts") == 0


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("../../etc/passwd.txt", "passwd.txt"), ("C:\\Users\\x\\a.md", "a.md"), (".hidden.txt", "hidden.txt"),
        ("a|b?.csv", "a_b.csv"), ("\u202eevil.jsonl", "evil.jsonl"), ("....txt", "text.txt"),
        ("~.zip", "~.zip"), ("長" * 300 + ".txt", "長" * 60 + ".txt"), ("a/../b.epub", "b.epub"),
    ],
)  # fmt: skip
def test_names_are_sanitised(place: Place, given: str, stored: str):
    assert place.send(given, b"x").json()["filename"] == stored
    assert [path.name for path in place.uploads.iterdir()] == [stored]


@pytest.mark.parametrize("name", ["a.", "a.py", "chat_template.jinja", "a.yaml", "a.safetensors", "a.txt.exe"])
def test_templates_and_code_are_refused(place: Place, name: str):
    assert place.send(name, b"x").status_code == 400
    assert list(place.uploads.glob("*")) == []


@pytest.mark.parametrize("name", ["../poet", "..", "/etc/passwd", "../poet/adapter_config.json", ".x", "none.txt", ""])
def test_nothing_outside_the_folder_is_used_or_removed(place: Place, name: str):
    place.send("a.txt", b"x")
    for given in (name, file_id(name), quote(name, "")):
        for part in ("", "/content"):
            assert httpx2.get(f"{place.running.url}/v1/files/{given}{part}").status_code == 404
        assert httpx2.delete(f"{place.running.url}/v1/files/{given}").status_code in (404, 405)
    ask = {"name": "first", "uploads": [name]}
    for answer in (place.post("train/settings", ask), place.begin(**ask)):
        assert answer.status_code in (400, 404)
    assert (place.running.library / "poet" / "adapter_config.json").is_file()


def test_links_in_the_folder_are_not_followed(place: Place):
    place.send("a.txt", b"x")
    os.symlink(place.directory.parent / "secret.txt", place.uploads / "secret.txt")
    assert place.sent() == ["a.txt"]
    assert place.post("train/preview", {"name": "first", "uploads": ["secret.txt"]}).status_code == 404


def test_limits(place: Place, monkeypatch: pytest.MonkeyPatch):
    largest = MAX_BODY + 1000  # more than other requests may have
    monkeypatch.setattr(uploads_module, "LARGEST", largest)
    monkeypatch.setattr(uploads_module, "MOST_BYTES", largest + 500)
    for measured in (True, False):
        answer = place.send("a.txt", b"x" * (largest + 10_000), measured=measured)
        assert answer.status_code == 413
        assert f"{largest + 10_000:,} bytes" in answer.json()["error"]["message"]
    assert list(place.uploads.glob("*")) == []
    assert place.send("a.txt", b"x" * largest, measured=False).status_code == 200
    assert place.send("b.txt", b"y" * 1000).status_code == 413
    monkeypatch.setattr(uploads_module, "MOST_FILES", 1)
    assert place.send("b.txt", b"y").status_code == 413
    monkeypatch.undo()
    full = SimpleNamespace(free=uploads_module.SPARE + 99)
    monkeypatch.setattr(uploads_module.shutil, "disk_usage", lambda path: full)
    assert place.send("b.txt", b"x" * 100).json()["error"]["code"] == "no_room"
    assert place.send("b.txt", b"x" * 99).status_code == 200
    assert sorted(path.name for path in place.uploads.iterdir()) == ["a.txt", "b.txt"]


def test_a_zip_that_unpacks_to_an_unusual_size_is_refused_by_the_reader(place: Place):
    for other, size, problem in (("../../out.txt", 1, "out.txt"), ("b.txt", 3_000_000, "unpacks")):
        content = zipped({"a.txt": b"a", other: "枝".encode() * size})
        name = place.send("bomb.zip", content).json()["filename"]
        shown = place.post("train/settings", {"name": "first", "uploads": [name]}).json()
        with pytest.raises(TsugikiError, match=problem):  # in this process; a preview reads in one of its own
            list(read_records(yaml.safe_load(shown["yaml"])["data"]))


def test_a_base_is_one_of_the_list(place: Place):
    save_tiny(place.directory / "other")
    bases = place.get("train/options").json()["bases"]
    assert bases[:3] == [place.running.base, "embedded", "other"]
    ask = {"name": "first", "texts": ["a.txt"]}
    shown = place.post("train/settings", {**ask, "base": "other"}).json()
    assert yaml.safe_load(shown["yaml"])["model"] == "other"
    for base in ("texts", "../x", str(place.directory / "other"), "owner/model", "", "other/"):
        assert place.post("train/settings", {**ask, "base": base}).status_code == 400, base
