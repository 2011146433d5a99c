"""Texts that the page sends stay in one folder, have limits, and are no templates or code; foreign pages send none."""

import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import yaml

pytest.importorskip("starlette")
import tsugiki.serve.uploads as uploads_module
from tests.serve.workspace import Place, serve_in
from tests.tiny import TEXT, save_tiny
from tsugiki import TsugikiError
from tsugiki.data import read_records
from tsugiki.io.formatting import format_size

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no links as these")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, own_files: tuple[str, Path]) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("outside") / "work"
    directory.mkdir()
    save_tiny(directory / "other")
    yield from serve_in(directory, own_files)


def folder(place: Place) -> Path:
    return place.running.library / ".texts"


def send(place: Place, name: str, content: bytes, **headers: str) -> Any:
    url = f"{place.running.url}/page/api/train/uploads"
    return httpx2.put(url, params={"name": name}, content=content, headers={"X-Page-Token": place.token, **headers})


def test_a_text_is_sent_used_and_removed(place: Place):
    names = [send(place, "春の朝.TXT", text.encode()).json()["name"] for text in (TEXT, TEXT[1:])]
    assert names == ["春の朝.txt", "春の朝-2.txt"]
    assert send(place, "again.txt", TEXT.encode()).json()["name"] == names[0]  # the same file is there once
    assert (folder(place) / names[0]).read_text(encoding="utf-8") == TEXT
    listed = place.get("train/uploads").json()
    assert {"name": names[0], "size": format_size(len(TEXT.encode()))} in listed["files"]
    shown = place.post("train/settings", {"name": "first", "uploads": names, "texts": ["a.txt"]}).json()
    data = yaml.safe_load(shown["yaml"])["data"]
    assert data == ["texts/a.txt", *(str(folder(place) / name) for name in names)]
    preview = place.post("train/preview", {"name": "first", "uploads": names[:1], "block_size": 32})
    assert preview.json()["rows"], preview.text
    for name in names:
        assert place.post("train/remove-upload", {"name": name}).status_code == 200
    assert list(folder(place).iterdir()) == []
    assert place.running.adapters.names().count(".texts") == 0


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("../../etc/passwd.txt", "passwd.txt"), ("C:\\Users\\x\\a.md", "a.md"), (".hidden.txt", "hidden.txt"),
        ("a\x00b?.csv", "a_b.csv"), ("\u202eevil.jsonl", "evil.jsonl"), ("....txt", "text.txt"),
        ("~.zip", "~.zip"), ("長" * 300 + ".txt", "長" * 60 + ".txt"), ("a/../b.epub", "b.epub"),
    ],
)  # fmt: skip
def test_names_are_sanitised(place: Place, given: str, stored: str):
    assert send(place, given, b"x").json()["name"] == stored
    assert [path.name for path in folder(place).iterdir()] == [stored]
    assert place.post("train/remove-upload", {"name": stored}).status_code == 200


@pytest.mark.parametrize(
    "name",
    ["", "a", "a.jinja", "a.py", "chat_template.jinja", "a.json", "a.safetensors", "a.yaml", "a.txt.exe", "a.so"],
)
def test_templates_and_code_are_refused(place: Place, name: str):
    assert send(place, name, b"x").status_code == 400
    assert not folder(place).exists() or list(folder(place).iterdir()) == []


@pytest.mark.parametrize("name", ["../poet", "..", "/etc/passwd", "../poet/adapter_config.json", ".x", "none.txt", ""])
def test_nothing_outside_the_folder_is_used_or_removed(place: Place, name: str):
    send(place, "a.txt", b"x")
    assert place.post("train/remove-upload", {"name": name}).status_code in (400, 404)
    for path in ("settings", "start"):
        assert place.post(f"train/{path}", {"name": "first", "uploads": [name]}).status_code in (400, 404)
    assert (place.running.library / "poet" / "adapter_config.json").is_file()
    place.post("train/remove-upload", {"name": "a.txt"})


def test_links_in_the_folder_are_not_followed(place: Place):
    send(place, "a.txt", b"x")
    os.symlink(place.directory.parent / "secret.txt", folder(place) / "secret.txt")
    assert [file["name"] for file in place.get("train/uploads").json()["files"]] == ["a.txt"]
    assert place.post("train/preview", {"name": "first", "uploads": ["secret.txt"]}).status_code == 404
    (folder(place) / "secret.txt").unlink()
    place.post("train/remove-upload", {"name": "a.txt"})


def test_limits(place: Place, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(uploads_module, "LARGEST", 1000)
    monkeypatch.setattr(uploads_module, "MOST_BYTES", 1500)
    assert send(place, "a.txt", b"x" * 1001).status_code == 413
    assert send(place, "a.txt", b"x" * 1000).status_code == 201
    assert send(place, "b.txt", b"y" * 1000).status_code == 413
    monkeypatch.setattr(uploads_module, "MOST_FILES", 1)
    assert send(place, "b.txt", b"y").status_code == 413
    monkeypatch.undo()
    full = SimpleNamespace(free=uploads_module.SPARE + 99)
    monkeypatch.setattr(uploads_module.shutil, "disk_usage", lambda path: full)
    assert send(place, "b.txt", b"x" * 100).json()["error"]["code"] == "no_room"
    assert send(place, "b.txt", b"x" * 99).status_code == 201
    assert sorted(path.name for path in folder(place).iterdir()) == ["a.txt", "b.txt"]
    for name in ("a.txt", "b.txt"):
        place.post("train/remove-upload", {"name": name})


def test_a_zip_that_unpacks_to_an_unusual_size_is_refused_by_the_reader(place: Place):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", "枝" * 3_000_000)
        archive.writestr("../../out.txt", "x")
    for content, problem in ((packed.getvalue(), "out.txt"), (_only_first(packed), "unpacks")):
        name = send(place, "bomb.zip", content).json()["name"]
        shown = place.post("train/settings", {"name": "first", "uploads": [name]}).json()
        with pytest.raises(TsugikiError, match=problem):  # in this process; a preview reads in one of its own
            list(read_records(yaml.safe_load(shown["yaml"])["data"]))
        place.post("train/remove-upload", {"name": name})


def _only_first(packed: io.BytesIO) -> bytes:
    only = io.BytesIO()
    with zipfile.ZipFile(packed) as archive, zipfile.ZipFile(only, "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("a.txt", archive.read("a.txt"))
    return only.getvalue()


DOORS = ["PUT train/uploads", "POST train/remove-upload", "POST keep-run", "POST export-adapter"]


@pytest.mark.parametrize("door", DOORS)
def test_foreign_pages_other_hosts_and_a_missing_token_are_refused(place: Place, door: str):
    method, path = door.split()
    url = f"{place.running.url}/page/api/{path}?name=a.txt"
    body, usual = json.dumps({"name": "a.txt", "to": "a"}), {"Content-Type": "application/json"}
    with_token = {**usual, "X-Page-Token": place.token}
    for headers, status in (
        ({**with_token, "Origin": "http://evil.example"}, 403),
        ({**with_token, "Sec-Fetch-Site": "cross-site"}, 403),
        ({**with_token, "Host": "evil.example"}, 400),
        (usual, 403),
        ({**usual, "X-Page-Token": "wrong"}, 403),
    ):
        assert httpx2.request(method, url, content=body, headers=headers).status_code == status, headers
    before = httpx2.options(url, headers={"Origin": "http://evil.example", "Access-Control-Request-Method": method})
    assert before.status_code == 403
    assert not folder(place).exists() or list(folder(place).iterdir()) == []


def test_a_base_is_one_of_the_list(place: Place):
    bases = place.get("train/options").json()["bases"]
    assert bases[:3] == [place.running.base, "embedded", "other"]
    ask = {"name": "first", "texts": ["a.txt"]}
    shown = place.post("train/settings", {**ask, "base": "other"}).json()
    assert yaml.safe_load(shown["yaml"])["model"] == "other"
    for base in ("texts", "../x", str(place.directory / "other"), "owner/model", "", "other/"):
        assert place.post("train/settings", {**ask, "base": base}).status_code == 400, base
