"""What the page does with the library: the table, an adapter, renaming, removing and saving a mix."""

import io
import re
import shutil
import tempfile
import threading
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest

from tests.serve.asking import PROMPT, connect, greedy
from tests.serve.conftest import Running, save_adapter_of
from tsugiki import LoraConfig
from tsugiki.adapters import library_names

API = "/page/api/"


def get(server: Running, path: str) -> Any:
    return httpx2.get(f"{server.url}{API}{path}", timeout=60)


def post(server: Running, path: str, body: Any) -> Any:
    token = re.findall(r'name="page-token" content="([\w-]{43})"', httpx2.get(server.url).text)[0]
    return httpx2.post(f"{server.url}{API}{path}", json=body, headers={"X-Page-Token": token}, timeout=60)


def answer(server: Running, model: str, **more: Any) -> str:
    fields = {"model": model, "prompt": PROMPT, "temperature": 0, "max_tokens": 12, **more}
    return str(connect(server).completions.create(**fields).choices[0].text)


def row_of(server: Running, name: str) -> Any:
    """The row of an adapter in the table."""
    return next(row for row in get(server, "adapters").json()["adapters"] if row["name"] == name)


def test_the_table(server: Running):
    found = get(server, "adapters").json()
    assert found["base"] == "base"
    rows = {row["name"]: row for row in found["adapters"]}
    assert list(rows) == library_names(server.library)
    poet = rows["poet"]
    assert (poet["method"], poet["rank"], poet["mixes"], poet["other_base"]) == ("lora", "2", True, None)
    assert (poet["held_out"], poet["origin"], poet["broken"]) == (None, None, None)
    assert (rows["turns"]["method"], rows["turns"]["mixes"]) == ("ia3", False)
    assert rows["歌人"]["chat"] is True
    assert "weights differ" in rows["foreign"]["other_base"]


def test_a_broken_adapter(server: Running):
    folder = server.library / "no json"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{")
    row = row_of(server, "no json")
    assert "JSON" in row["broken"]
    assert str(server.library) not in row["broken"]
    assert post(server, "remove-adapter", {"name": "no json"}).status_code == 200
    assert not folder.exists()


def test_an_adapter(server: Running):
    readme = server.library / "poet" / "README.md"
    readme.write_text("---\nlicense: mit\n---\n# <b>Poet</b>\n", encoding="utf-8")
    details = get(server, "adapters/poet").json()
    shown = {section["name"]: section["parts"] for section in details["sections"]}
    assert ["method", "lora, r 2"] in shown["adapter"][0]["rows"]
    assert details["card"] == "# <b>Poet</b>"
    assert set(shown) == {"result", "notes", "adapter"}
    assert get(server, f"adapters/{quote('歌人')}").json()["card"] is None


def test_the_report(server: Running):
    report = get(server, "adapters/poet/report")
    assert report.text.startswith("<!DOCTYPE html>")
    policy = report.headers["content-security-policy"]
    assert ("sandbox" in policy, "script" in policy) == (True, False)
    assert report.headers["content-disposition"] == "attachment; filename*=UTF-8''poet.html"


def test_an_adapter_is_exported_and_nothing_stays_on_the_disk(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    weights = server.library / "lawyer" / "adapter_model.safetensors"
    weights.with_name("own.py").write_text("print()")
    packed = post(server, "export-adapter", {"name": "lawyer", "kind": "zip"})
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        assert archive.testzip() is None
        names = {"adapter_config.json", "adapter_model.safetensors", "tsugiki.json"}
        assert set(archive.namelist()) == {f"lawyer/{name}" for name in names}
        assert archive.read("lawyer/adapter_model.safetensors") == weights.read_bytes()
    weights.with_name("own.py").unlink()
    file = post(server, "export-adapter", {"name": "lawyer", "kind": "gguf"})
    assert file.content[:4] == b"GGUF", file.text
    assert list(tmp_path.iterdir()) == []
    for name, kind in (("broken", "zip"), ("broken", "gguf"), ("turns", "gguf")):  # IA³ has no GGUF
        assert post(server, "export-adapter", {"name": name, "kind": kind}).status_code == 400
    problem = post(server, "export-adapter", {"name": "dora", "kind": "gguf"}).json()["error"]["message"]
    assert re.fullmatch(".*dora alone .*DoRA.*“tsugiki export”.*", problem)
    assert "merged" not in problem


@pytest.mark.parametrize("name", ["nobody", "base", "..", "../adapters/poet", "/etc", "base:poet", "poet/"])
def test_names_that_are_none(server: Running, name: str):
    assert get(server, f"adapters/{quote(name, safe='')}").status_code == 404
    before = library_names(server.library)
    for path, body in (
        ("remove-adapter", {"name": name}),
        ("export-adapter", {"name": name, "kind": "zip"}),
        ("rename-adapter", {"name": name, "to": "x"}),
        ("save-mix", {"adapters": {name: 1}, "name": "x"}),
    ):
        assert post(server, path, body).status_code == 404
    assert library_names(server.library) == before


@pytest.mark.parametrize("name", ["", ".x", "a/b", "../x", "lawyer", "base", "a\u202eb"])
def test_names_that_cannot_be_given(server: Running, name: str):
    before = library_names(server.library)
    for path, body in (
        ("rename-adapter", {"name": "poet", "to": name}),
        ("save-mix", {"adapters": {"poet": 1}, "name": name}),
    ):
        assert post(server, path, body).status_code == 400
    assert library_names(server.library) == before


def test_a_renamed_adapter(server: Running):
    """Requests that run end as they began, and the old name can be that of another adapter at once."""
    shutil.copytree(server.library / "poet", server.library / "old")
    expected = answer(server, "old")
    long: dict[str, Any] = {"max_tokens": 150, "extra_body": {"ignore_eos": True}}
    alone, texts = answer(server, "old", **long), list[str]()
    running = threading.Thread(target=lambda: texts.append(answer(server, "old", **long)))
    running.start()
    while not server.engine.running and running.is_alive():
        pass
    assert post(server, "rename-adapter", {"name": "old", "to": "新しい"}).json() == {"name": "新しい"}
    assert post(server, "rename-adapter", {"name": "lawyer", "to": "old"}).status_code == 200
    lawyer = greedy(server, "old")
    assert answer(server, "old") == lawyer != expected
    assert answer(server, "新しい") == expected
    running.join(60)
    assert texts == [alone]
    assert post(server, "rename-adapter", {"name": "old", "to": "lawyer"}).status_code == 200
    assert post(server, "remove-adapter", {"name": "新しい"}).status_code == 200
    assert "新しい" not in server.adapters.loaded()
    for name in ("old", "新しい"):
        assert httpx2.get(f"{server.url}/v1/models/{quote(name)}").status_code == 404


def test_a_mix_is_saved(server: Running):
    mix = {"poet": 0.7, "lawyer": -0.3}
    assert post(server, "save-mix", {"adapters": mix, "name": "both"}).json() == {"name": "both"}
    assert answer(server, "both") == answer(server, "base", extra_body={"adapters": mix})
    origin = row_of(server, "both")["origin"]
    assert origin["operation"] == "combine"
    assert {source["name"]: source["weight"] for source in origin["sources"]} == mix
    refused = post(server, "save-mix", {"adapters": {"poet": 1, "turns": 1}, "name": "no"})
    assert (refused.status_code, (server.library / "no").exists()) == (400, False)
    assert post(server, "remove-adapter", {"name": "both"}).status_code == 200


def test_a_replaced_adapter_has_a_new_row(server: Running):
    for rank in (2, 4):
        save_adapter_of(server.base, server.library / "row", 3, LoraConfig(r=rank, target_modules="all-linear"))
        assert row_of(server, "row")["rank"] == str(rank)
        shutil.rmtree(server.library / "row")
