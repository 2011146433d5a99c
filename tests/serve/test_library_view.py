"""What the page does with the library: the table, an adapter, renaming, removing and saving a mix."""

import io
import re
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest

from tests.serve.conftest import Running, save_adapter_of, start
from tests.serve.test_server import PROMPT, connect, greedy, ids, text_of
from tsugiki import LoraConfig
from tsugiki.adapters import library_names

API = "/page/api/"


@pytest.fixture(scope="module")
def server(own_files: tuple[str, Path]) -> Iterator[Running]:
    """A server with a library of its own, which tests change."""
    base, own = own_files
    (own / "poet" / "README.md").write_text("---\nlicense: mit\n---\n# <b>Poet</b>\n", encoding="utf-8")
    yield from start(base, own, max_loaded=4)


def get(server: Running, path: str) -> Any:
    return httpx2.get(f"{server.url}{API}{path}", timeout=60)


def post(server: Running, path: str, body: Any) -> Any:
    token = re.findall(r'name="page-token" content="([\w-]{43})"', httpx2.get(server.url).text)[0]
    return httpx2.post(f"{server.url}{API}{path}", json=body, headers={"X-Page-Token": token}, timeout=60)


def answer(server: Running, name: str) -> str:
    text = connect(server).completions.create(model=name, prompt=PROMPT, temperature=0, max_tokens=12).choices[0].text
    return str(text)


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
    row = next(row for row in get(server, "adapters").json()["adapters"] if row["name"] == "no json")
    assert "JSON" in row["broken"]
    assert str(server.library) not in row["broken"]
    assert post(server, "remove-adapter", {"name": "no json"}).status_code == 200
    assert not folder.exists()


def test_an_adapter(server: Running):
    details = get(server, "adapters/poet").json()
    shown = {section["name"]: section["parts"] for section in details["sections"]}
    assert ["method", "lora, r 2"] in shown["adapter"][0]["rows"]
    assert details["card"] == "# <b>Poet</b>"
    assert set(shown) == {"result", "adapter"}
    assert get(server, f"adapters/{quote('歌人')}").json()["card"] is None


def test_the_report(server: Running):
    report = get(server, "adapters/poet/report")
    assert report.text.startswith("<!DOCTYPE html>")
    assert "sandbox" in report.headers["content-security-policy"]
    assert "script" not in report.headers["content-security-policy"]
    assert report.headers["content-disposition"] == "attachment; filename*=UTF-8''poet.html"


def test_an_adapter_is_exported_and_nothing_stays_on_the_disk(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (server.library / "poet" / "own.py").write_text("print()")
    packed = post(server, "export-adapter", {"name": "poet", "kind": "zip"})
    with zipfile.ZipFile(io.BytesIO(packed.content)) as archive:
        assert archive.testzip() is None
        names = {"README.md", "adapter_config.json", "adapter_model.safetensors", "tsugiki.json"}
        assert set(archive.namelist()) == {f"poet/{name}" for name in names}
        archive.extractall(tmp_path / "out")
    weights = (server.library / "poet" / "adapter_model.safetensors").read_bytes()
    assert (tmp_path / "out" / "poet" / "adapter_model.safetensors").read_bytes() == weights
    shutil.rmtree(tmp_path / "out")
    file = post(server, "export-adapter", {"name": "poet", "kind": "gguf"})
    assert file.content[:4] == b"GGUF", file.text
    assert list(tmp_path.iterdir()) == []
    for kind in ("zip", "gguf"):
        assert post(server, "export-adapter", {"name": "broken", "kind": kind}).status_code == 400
    assert post(server, "export-adapter", {"name": "turns", "kind": "gguf"}).status_code == 400  # IA³ has no GGUF
    dora = LoraConfig(r=2, target_modules="all-linear", use_dora=True)
    save_adapter_of(server.base, server.library / "dora", 8, dora)
    problem = post(server, "export-adapter", {"name": "dora", "kind": "gguf"}).json()["error"]["message"]
    assert re.fullmatch(".*dora alone .*DoRA.*“tsugiki export”.*", problem)
    assert "merged" not in problem
    shutil.rmtree(server.library / "dora")
    (server.library / "poet" / "own.py").unlink()


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
    long = {"model": "old", "prompt": PROMPT, "temperature": 0, "max_tokens": 150, "extra_body": {"ignore_eos": True}}
    client = connect(server)
    alone = client.completions.create(**long).choices[0].text
    texts: list[str] = []
    running = threading.Thread(target=lambda: texts.append(client.completions.create(**long).choices[0].text))
    running.start()
    while not server.engine.running and running.is_alive():
        pass
    assert post(server, "rename-adapter", {"name": "old", "to": "新しい"}).json() == {"name": "新しい"}
    assert post(server, "rename-adapter", {"name": "lawyer", "to": "old"}).status_code == 200
    lawyer = text_of(greedy(server, "old", [0, *ids(PROMPT)], 12))
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
    text = (
        connect(server)
        .completions.create(model="base", prompt=PROMPT, temperature=0, max_tokens=12, extra_body={"adapters": mix})
        .choices[0]
        .text
    )
    assert answer(server, "both") == text
    row = next(row for row in get(server, "adapters").json()["adapters"] if row["name"] == "both")
    assert row["origin"]["operation"] == "combine"
    assert [source["name"] for source in row["origin"]["sources"]] == list(mix)
    assert [source["weight"] for source in row["origin"]["sources"]] == list(mix.values())
    refused = post(server, "save-mix", {"adapters": {"poet": 1, "turns": 1}, "name": "no"})
    assert (refused.status_code, (server.library / "no").exists()) == (400, False)
    assert post(server, "remove-adapter", {"name": "both"}).status_code == 200


def test_a_replaced_adapter_has_a_new_row(server: Running):
    folder = server.library / "row"
    save_adapter_of(server.base, folder, 3)
    first = get(server, "adapters").json()["adapters"]
    shutil.rmtree(folder)
    save_adapter_of(server.base, folder, 4, LoraConfig(r=4, target_modules="all-linear"))
    second = get(server, "adapters").json()["adapters"]
    assert [row["rank"] for rows in (first, second) for row in rows if row["name"] == "row"] == ["2", "4"]
    shutil.rmtree(folder)
