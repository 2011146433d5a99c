"""A run is a model: requests name it while it trains and afterwards, and it is kept in the library under a name."""

import os
import shutil
from pathlib import Path
from typing import Any

import httpx2
import pytest

pytest.importorskip("starlette")
from tests.serve.workspace import Place, write_run
from tsugiki.errors import TsugikiError
from tsugiki.serve import served_adapters

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no links as these")


def adapter_of(place: Place, name: str, folder: Path) -> None:
    shutil.copytree(place.running.library / name, folder, dirs_exist_ok=True)


def said(place: Place, model: str) -> Any:
    body = {"model": model, "prompt": "on the", "max_tokens": 12, "temperature": 0}
    return httpx2.post(f"{place.running.url}/v1/completions", json=body, timeout=120)


def test_a_run_is_its_last_checkpoint_and_then_its_result(place: Place):
    run = write_run(place.directory, "runs/first")
    assert said(place, "runs/first").status_code == 404  # it has no checkpoint yet
    for name, folder in (("poet", "checkpoints/checkpoint-9"), ("lawyer", "checkpoints/checkpoint-10"), ("歌人", "")):
        adapter_of(place, name, run / folder)
        assert said(place, "runs/first").json()["choices"][0]["text"] == said(place, name).json()["choices"][0]["text"]
    assert place.get("models").json()["runs"] == [{"name": "runs/first", "chat": True}]
    assert place.get("run", name="runs/first").json()["talks"]


def test_a_checkpoint_that_comes_while_another_is_loaded_is_the_next_one(place: Place, monkeypatch: pytest.MonkeyPatch):
    saved = write_run(place.directory, "runs/quick") / "checkpoints"
    adapter_of(place, "poet", saved / "checkpoint-1")
    load = served_adapters.load_served

    def slow(*given: Any) -> Any:
        if not (saved / "checkpoint-2").exists():
            adapter_of(place, "lawyer", saved / "checkpoint-2")
        return load(*given)

    monkeypatch.setattr(served_adapters, "load_served", slow)
    for name in ("poet", "lawyer"):
        assert said(place, "runs/quick").json()["choices"] == said(place, name).json()["choices"]


def test_a_run_deleted_while_someone_talks_to_it(place: Place, monkeypatch: pytest.MonkeyPatch):
    adapter_of(place, "poet", write_run(place.directory, "runs/gone", status="finished") / "checkpoints/checkpoint-1")
    body = {"model": "runs/gone", "prompt": "on the", "max_tokens": 40, "temperature": 0, "stream": True}
    with httpx2.stream("POST", f"{place.running.url}/v1/completions", json=body, timeout=120) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert place.post("runs/remove", {"name": "runs/gone"}).status_code == 200
        assert [line for line in lines if line][-1] == "data: [DONE]"  # the answer goes on
    assert not (place.directory / "runs" / "gone").exists()
    refused = said(place, "runs/gone")
    assert refused.status_code == 404
    assert "runs/gone" in refused.json()["error"]["message"]

    adapter_of(place, "poet", write_run(place.directory, "runs/loads", status="finished") / "checkpoints/checkpoint-1")

    def slow(*_given: Any) -> Any:
        place.post("runs/remove", {"name": "runs/loads"})
        raise TsugikiError("a file is missing")

    monkeypatch.setattr(served_adapters, "load_served", slow)
    assert said(place, "runs/loads").status_code == 503
    assert said(place, "runs/loads").status_code == 404
    monkeypatch.undo()
    assert said(place, "poet").status_code == 200


def test_the_list_of_models_has_no_runs(place: Place):
    adapter_of(place, "poet", write_run(place.directory, "runs/other") / "checkpoints" / "checkpoint-1")
    listed = {one["id"] for one in httpx2.get(f"{place.running.url}/v1/models").json()["data"]}
    assert ("poet" in listed, "runs/other" in listed) == (True, False)
    assert httpx2.get(f"{place.running.url}/v1/models/runs/other").status_code == 200


def test_a_run_is_kept_in_the_library(place: Place):
    folder = write_run(place.directory, "runs/kept", status="finished") / "checkpoints" / "checkpoint-7"
    adapter_of(place, "lawyer", folder)
    (folder / "optimizer.safetensors").touch()
    ask = {"name": "runs/kept", "to": "judge"}
    for wrong in ("poet", "../judge"):  # taken, and none
        assert place.post("keep-run", {**ask, "to": wrong}).status_code == 400
    assert place.post("keep-run", ask).status_code == 200
    kept = place.running.library / "judge"
    assert (kept / "adapter_config.json").is_file()
    assert not (kept / "optimizer.safetensors").exists()
    assert said(place, "judge").json()["choices"] == said(place, "lawyer").json()["choices"]


@pytest.mark.parametrize("name", ["../outside", "/etc", "runs/link", "runs", "", "runs/.hidden"])
def test_names_that_are_no_run(place: Place, name: str):
    outside = place.directory.parent / "outside"
    if not outside.exists():
        adapter_of(place, "poet", outside)
        write_run(place.directory.parent, "outside")
        (place.directory / "runs").mkdir(exist_ok=True)
        os.symlink(outside, place.directory / "runs" / "link")
        shutil.copytree(outside, place.directory / "runs" / ".hidden")
    assert said(place, name).status_code == 404
    assert place.post("keep-run", {"name": name, "to": "stolen"}).status_code == 404
    assert not (place.running.library / "stolen").exists()


def test_an_adapter_comes_before_a_run_of_the_same_name(place: Place):
    adapter_of(place, "lawyer", write_run(place.directory, "poet") / "checkpoints" / "checkpoint-1")
    assert place.running.adapters.folder("poet") == place.running.library / "poet"
    assert "poet" not in place.running.adapters.run_names()
