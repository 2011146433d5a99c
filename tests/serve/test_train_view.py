"""Runs are prepared from texts below one folder and settings of a fixed list, and started without a shell."""

import asyncio
import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

pytest.importorskip("starlette")
from tests.data.read.aozora.samples import make_mirror
from tests.serve.workspace import Place, training_in, write_run
from tests.tiny import TEXT
from tsugiki.errors import TsugikiError
from tsugiki.io import sole_use
from tsugiki.language import JAPANESE, speaking
from tsugiki.serve import ApiError, ClientDisconnected, Jobs, RunFields, RunRequest, Runs, Training, job_worker
from tsugiki.training import RunConfig, settings_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no links as these")

ASK: dict[str, Any] = {"name": "first", "texts": ["a.txt"]}


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    """What starts runs, of which the queue moves on when the test says so."""
    monkeypatch.setattr(Runs, "watch", lambda _self: None)
    return training_in(tmp_path)


def first(training: Training, **more: Any) -> Any:
    return training.prepare(RunRequest(name="first", texts=["a.txt"], **more))


def test_texts_are_listed_without_links_and_hidden_files(place: Place):
    for folder, names in (("", ["novels", "a.txt"]), ("novels", ["0.txt", "1.txt", "2.txt", "3.txt"])):
        assert [one["name"] for one in place.get("train/texts", folder=folder).json()["entries"]] == names


@pytest.mark.parametrize(
    "path",
    [
        "..", "/etc/passwd", "novels/../../secret.txt", "link.txt", "out", "out/secret.txt", ".hidden.txt", "a.txt\x00",
        "~/x", "none.txt", "a.txt/", "*.txt", "C:\\x", "\ud800", "a" * 9999, "https://example.org/a.txt",
    ],
)  # fmt: skip
def test_paths_that_are_not_allowed(place: Place, path: str):
    for name in ("settings", "preview", "plan", "start"):
        answer = place.post(f"train/{name}", {**ASK, "texts": [path]})
        assert answer.status_code in (400, 404), answer.text
        assert "secret" not in answer.text.replace(path, "")
    if path.isprintable():
        assert place.get("train/texts", folder=path).status_code in (400, 404)
    assert not (place.directory / "runs").exists()


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", ".x", "-x", "a\x00", "a\n", "x" * 101, "a:b", "\ud800"])
def test_names_of_runs_that_are_not_allowed(place: Place, name: str):
    for answer in (place.post("train/settings", {**ASK, "name": name}), place.begin(**{**ASK, "name": name})):
        assert answer.status_code == 400
    assert not (place.directory / "runs").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "other"}, {"trust_remote_code": True}, {"out": "/tmp/x"}, {"data": "/etc/passwd"}, {"device": "cuda"},
        {"report_to": ["wandb"]}, {"held_out": "/etc/passwd"}, {"start_from": "x"}, {"chat_template": "/etc/passwd"},
        {"method": "none"}, {"method": "full"}, {"r": 0}, {"r": 10**9}, {"r": "8"}, {"epochs": -1}, {"epochs": 1e999},
        {"minutes": 1, "epochs": 1}, {"texts": []}, {"texts": ["a.txt"] * 65}, {"texts": "a.txt"}, {"prompts": [""] },
        {"prompts": ["x"] * 5}, {"learning_rate": "probe"}, {"method": "ia3", "r": 8}, {"base_dtype": "int1"},
    ],
)  # fmt: skip
def test_settings_that_are_not_allowed(place: Place, changes: dict[str, Any]):
    answer = place.post("train/settings", {**ASK, **changes})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


def test_a_page_can_set_only_what_is_marked_and_no_text_that_may_be_a_path():
    offered = RunRequest.model_fields.keys() - RunFields.model_fields.keys()
    for setting in settings_of(RunConfig):
        name = setting.path[-1]
        assert (name in offered) == bool(setting.about.page)
        if name == "system":  # a text, which is never a path
            continue
        for value in ("/etc/passwd", "~/x", "owner/model"):
            with pytest.raises(ValidationError):
                RunRequest.model_validate({**ASK, name: value if name not in RunFields.model_fields else 1})


def test_the_form_offers_settings_with_labels_in_the_language_of_the_reader(training: Training):
    with speaking(JAPANESE):
        settings = {one["name"]: one for one in training.options()["settings"]}
    assert settings["learning_rate"]["label"] == "学習率"
    assert (settings["r"]["section"], settings["base_dtype"]["kind"]) == ("lora", "choice")
    assert "full" not in dict(settings["method"]["choices"])
    chat, preference, epochs = (settings[name] for name in ("chat_template", "preference", "epochs"))
    assert (chat["default"], epochs["default"]) == ("auto", "auto")
    assert chat["data"] == ("questions", "conversations", "pairs")  # what the data are decides what is offered
    assert (preference["data"], epochs["data"]) == (("pairs",), None)
    assert "--" not in json.dumps(list(settings.values()))


def test_a_table_is_looked_at_and_its_columns_are_given(place: Place):
    (place.directory / "texts" / "table.csv").write_text("frage,antwort\nWo?,Hier.\n")
    shown = place.post("train/look", {"texts": ["table.csv"]}).json()
    assert shown == {"kind": "table", "columns": {}, "rows": [{"frage": "Wo?", "antwort": "Hier."}]}
    columns = {"prompt": "frage", "completion": "antwort"}
    assert place.post("train/look", {"texts": ["table.csv"], "columns": columns}).json()["kind"] == "questions"
    answer = place.post("train/settings", {**ASK, "texts": ["table.csv"], "columns": columns})
    assert yaml.safe_load(answer.json()["yaml"])["columns"] == columns


def test_a_message_on_the_page_names_the_field_and_not_the_flag(place: Place, monkeypatch: pytest.MonkeyPatch):
    rows = ({"prompt": f"{number} " * 99, "completion": "b"} for number in range(9))
    (place.directory / "texts" / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shown = place.post("train/settings", {**ASK, "texts": ["long.jsonl"], "block_size": 16}).json()
    monkeypatch.chdir(place.directory)
    with speaking("en", on_page=True), pytest.raises(TsugikiError, match="“Tokens per row”") as caught:
        job_worker.preview(yaml.safe_load(shown["yaml"]))  # in this process; the page's is one of its own
    assert "--" not in str(caught.value)


def test_the_form_of_a_run_is_filled_in_again(tmp_path: Path, training: Training):
    (tmp_path / "sent").mkdir()
    (tmp_path / "sent" / "b.csv").write_text("x,y\n1,2\n")
    data: dict[str, Any] = {"texts": ["a.txt"], "uploads": ["b.csv"], "columns": {"prompt": "x", "completion": "y"}}
    training.start(training.prepare(RunRequest(name="first", **data, prompts=["a", "b"], r=4, minutes=2.0)))
    filled = training.again("runs/first")
    given = {name: value for name, value in filled["values"].items() if value is not None}
    assert given == {"prompts": "a\nb", "r": "4", "minutes": "2.0"}
    expected = {**data, "name": "first-2", "length": "minutes", "base": "embedded"}
    assert {name: filled[name] for name in expected} == expected
    write_run(tmp_path, "other-2")  # not started by the page
    assert (training.again("other-2")["name"], training.again("other-2")["base"]) == ("other-2", "embedded")
    write_run(tmp_path, "runs/other-2")
    assert training.again("other-2")["name"] == "other-3"


def test_the_command_and_the_settings(place: Place):
    answer = place.post("train/settings", {**ASK, "name": "春 a'b", "texts": ["a.txt", "novels"], "r": 4, "epochs": 2})
    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert shlex.split(shown["command"]) == ["tsugiki", "train", "runs/春 a'b/settings.yaml"]
    given = {"model": place.running.base, "data": ["texts/a.txt", "texts/novels"], "out": "runs/春 a'b"}
    assert yaml.safe_load(shown["yaml"]) == {**given, "epochs": 2.0, "lora": {"r": 4}}
    assert not (place.directory / "runs").exists()


def test_paths_on_the_page_begin_at_the_home_folder_and_a_preview_has_few_of_them(
    tmp_path: Path, training: Training, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    (tmp_path / "sent").mkdir()
    (tmp_path / "sent" / "b.jsonl").write_text("\n".join(json.dumps({"text": f"{TEXT[:600]} {n}"}) for n in range(30)))
    (tmp_path / "texts" / "c.txt").write_text(" ".join(str(number**3) for number in range(400)))
    prepared = training.prepare(RunRequest(name="a", uploads=["b.jsonl"]))
    assert (prepared.given["data"], training.options()["texts"]) == ("~/sent/b.jsonl", "~/texts")
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = {**prepared.given, "held_out": "texts/c.txt"}
    jobs = Jobs(tmp_path, tmp_path / "sent")
    shown = asyncio.run(jobs.run(_Client(), "preview", 100, settings=settings))  # type: ignore[arg-type]
    text = json.dumps(shown, ensure_ascii=False)
    assert "near-duplicates of each other: 30 records" in text
    assert str(tmp_path) not in text
    assert text.count("b.jsonl") < 15
    assert "--" not in "".join(shown["notes"])


def test_a_folder_with_a_link_in_it_is_refused(tmp_path: Path, training: Training):
    texts = tmp_path / "texts" / "inner"
    texts.mkdir(parents=True)
    os.symlink("/etc/passwd", texts / "b.txt")
    with pytest.raises(ApiError, match="link"):
        training.prepare(RunRequest(name="a", texts=["inner"]))


def words_of(training: Any) -> list[list[str]]:
    """The commands that were started."""
    return [words for words, _language in training.runs.processes.commands]


def test_start_writes_the_settings_and_starts_the_command(tmp_path: Path, training: Training):
    prepared = first(training, prompts=["枝を"])
    training.start(prepared)
    assert words_of(training) == [["train", "runs/first/settings.yaml"]]
    assert (tmp_path / prepared.settings_file).read_text() == prepared.text
    training.runs.processes.running = None
    training.start(prepared)  # it has failed before it wrote a record, and may be tried again
    assert len(words_of(training)) == 2
    write_run(tmp_path, "runs/first", status="finished")
    with pytest.raises(ApiError, match="exists"):
        training.start(prepared)


def test_start_refuses_links(tmp_path: Path, training: Training):
    prepared = first(training)
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "runs")
    with pytest.raises(ApiError, match="link"):
        training.start(prepared)
    (tmp_path / "runs").unlink()
    (tmp_path / "runs").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "runs" / "first")
    with pytest.raises(ApiError, match="exists"):
        training.start(prepared)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    (tmp_path / "runs" / "first").unlink()
    assert words_of(training) == []


def test_who_starts_beside_another_run_is_queued_and_told_the_place(tmp_path: Path, training: Training):
    with sole_use(write_run(tmp_path, "other")):
        for place, name in enumerate(("first", "second"), 1):
            run = training.start(training.prepare(RunRequest(name=name, texts=["a.txt"])))
            assert training.runs.summary(run)["place"] == place
        with pytest.raises(ApiError, match="exists"):  # nobody replaces the settings of a run that waits
            training.start(first(training, seed=2))
    assert words_of(training) == []
    training.runs.start_next()
    assert words_of(training) == [["train", "runs/first/settings.yaml"]]


class _Client:
    """A request whose client waits, or goes away after some seconds."""

    def __init__(self, seconds: float = 1000) -> None:
        self.seconds = seconds

    async def receive(self) -> dict[str, str]:
        await asyncio.sleep(self.seconds)
        return {"type": "http.disconnect"}


def _run(function: str, seconds: float = 300, client: Any = None, **arguments: Any) -> Any:
    return asyncio.run(Jobs(Path.cwd(), Path("texts")).run(client or _Client(), function, seconds, **arguments))


def test_works_of_aozora_are_searched_and_written(tmp_path: Path):
    source = str(make_mirror(tmp_path / "mirror"))
    query = {"author": None, "title": "坂の上", "kana": None}
    assert _run("works", source=source, query=query)["count"] == 3  # without an index, any of the works can match
    out = tmp_path / "works.jsonl"
    assert _run("fetch", source=source, query=query, out=str(out))["works"] == 1
    assert json.loads(out.read_text(encoding="utf-8"))["title"] == "坂の上"
    with pytest.raises(TsugikiError, match="exists"):
        _run("fetch", source=source, query=query, out=str(out))


def test_a_job_that_takes_too_long_is_ended(tmp_path: Path):
    with pytest.raises(ApiError) as caught:
        _run("works", 0.01, source=str(tmp_path), query={})
    assert caught.value.status == 503
    with pytest.raises(ClientDisconnected):
        _run("works", 100, _Client(0.01), source=str(tmp_path), query={})


def test_an_unexpected_error_of_a_job():
    with pytest.raises(TsugikiError, match="KeyError"):
        _run("none")


def test_two_people_ask_at_once_and_one_waits_for_the_other(tmp_path: Path):
    async def two() -> list[Any]:
        jobs = Jobs(tmp_path, tmp_path / "texts")
        asked = [jobs.run(_Client(), "works", 100, source=str(tmp_path), query={}) for _ in range(2)]  # type: ignore[arg-type]
        return await asyncio.gather(*asked, return_exceptions=True)

    assert ["cards" in str(error) for error in asyncio.run(two())] == [True, True]
