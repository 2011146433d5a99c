"""Runs below the working directory are listed, read while they are written, stopped, resumed, queued and deleted."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
from tests.serve.workspace import NotedProcesses, Place, record_of, write_run
from tsugiki.errors import TsugikiError
from tsugiki.io import process_of, sole_use
from tsugiki.language import _, speaking
from tsugiki.serve import LOG_FILE, SETTINGS_FILE, ApiError, RunProcesses, Runs, run_queue, runs_view
from tsugiki.training import LossPoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no signals and links as these")

HOSTILE = [
    "", "..", "runs/../../etc", "//etc", "runs//a", "runs/a/", "./runs/a", "runs/\x00", "runs\\a", "runs/.hidden",
    "runs/link", "~root", "a" * 5000, "runs/none", "texts/a.txt", "\ud800", "runs/a\n", "runs/*",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(place: Place) -> Place:
    """With runs, some of which are not to be found."""
    directory = place.directory
    for name in ("runs/a", "b/c/d/deep", "b/c/d/e/too-deep", "runs/.hidden", "runs/a/checkpoints/inner"):
        write_run(directory, name)
    write_run(directory, "runs/done", status="finished")
    os.symlink(write_run(directory.parent, "outside"), directory / "runs" / "link")
    os.symlink(directory.parent, directory / "link")
    return place


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Runs whose queue moves on when the test says so."""
    monkeypatch.setattr(Runs, "watch", lambda _self: None)
    return Runs(tmp_path, RunProcesses(), library=tmp_path / "library")


@pytest.fixture
def processes(runs: Runs) -> NotedProcesses:
    """Processes of `runs` that are none."""
    runs.processes = processes = NotedProcesses()
    return processes


def losses(answer: dict[str, Any]) -> list[tuple[float, ...]]:
    """Return the points of the training loss in the details of a run."""
    parts = [part for section in answer["sections"] for part in section["parts"] if part["kind"] == "curves"]
    return [tuple(point) for point in parts[0]["series"][0]["points"]]


def test_the_list(place: Place):
    found = {one["name"]: one["state"] for one in place.runs()}
    assert found == {"runs/a": "stopped", "runs/done": "finished", "b/c/d/deep": "stopped"}
    run = next(one for one in place.runs() if one["name"] == "runs/a")
    assert (run["step"], run["steps"], run["can_stop"], run["can_resume"]) == (4, 10, False, True)
    assert run["model"] == "embedded"


def test_a_run_before_its_first_step_has_no_loss_and_sent_texts_no_folder(place: Place):
    record = record_of(place.directory, "runs/new")
    assert record.training
    record.training.steps, record.training.loss = 0, 0.0
    record.config.data = [f"/home/a/adapters/.texts/{name}.txt" for name in "ab"] + ["novels/c.txt"]
    record.write(write_run(place.directory, "runs/new"))
    run = place.get("run", name="runs/new").json()
    assert (run["step"], run["loss"], run["data"]) == (0, None, "a.txt, b.txt, novels/c.txt")


def test_details(place: Place):
    answer = place.get("run", name="runs/a").json()
    assert losses(answer) == [(1, 4.75), (2, 4.5), (3, 4.25), (4, 4.0)]
    samples = next(one for one in answer["sections"] if one["name"] == "samples")["parts"]
    assert samples[0]["texts"][-1] == ["step 4", [["切る4<b>", False]]]
    with sole_use(place.directory / "runs/a"):
        running = place.get("run", name="runs/a").json()
    assert running["state"] == "running"
    assert running["time_left"] == "12 s"  # six steps of two seconds


def test_a_finished_run_whose_process_still_lives_is_finished(tmp_path: Path, runs: Runs, processes: NotedProcesses):
    write_run(tmp_path, "run", status="finished")
    processes.running = tmp_path / "run"
    shown = shown_of(runs)
    assert (shown["state"], shown["can_stop"], shown["time_left"]) == ("finished", False, None)
    with sole_use(tmp_path / "run"):  # a process that continues it with more steps
        assert shown_of(runs)["state"] == "running"


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_are_no_run(place: Place, name: str):
    for what in ("", "/cancel", "/resume", "/events"):
        assert place.jobs(name.encode(errors="replace").decode() or "none", what).status_code == 404
    for path in ("runs/remove", "runs/plan"):
        answer = place.post(path, {"name": name})
        assert answer.status_code in (400, 404), answer.text
    if name.isprintable():
        assert place.get("run", name=name).status_code in (400, 404)


def shown_of(runs: Runs, name: str = "run") -> dict[str, Any]:
    return runs.details(runs.find(name))


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b'{"format": 9}', b'{"format": 2, "config": {}}'])
def test_records_that_cannot_be_read(content: bytes, tmp_path: Path, runs: Runs):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_bytes(content)
    shown = shown_of(runs)
    assert (shown["state"], shown["can_resume"]) == ("unreadable", False)
    assert "run.json" in shown["error"]


def test_records_that_are_no_files_or_too_large(tmp_path: Path, runs: Runs):
    real = write_run(tmp_path, "real") / "run.json"
    for name in ("pipe", "link", "large", "folder"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / "run.json")
    os.mkfifo(tmp_path / "pipe" / LOG_FILE)
    os.symlink(real, tmp_path / "link" / "run.json")
    (tmp_path / "folder" / "run.json").mkdir()
    with (tmp_path / "large" / "run.json").open("wb") as file:
        file.truncate(10**9)
    for name in ("pipe", "link", "large", "folder"):
        assert shown_of(runs, name)["state"] == "unreadable"
    assert len(runs.all()) == 5


def test_a_record_is_read_again_when_it_changes_and_has_no_figures_that_json_lacks(tmp_path: Path, runs: Runs):
    write_run(tmp_path, "run")
    assert shown_of(runs)["state"] == "stopped"
    points = [LossPoint(step=step, loss=loss, learning_rate=0.1) for step, loss in ((1, float("nan")), (2, 3.0))]
    write_run(tmp_path, "run", status="finished", loss_curve=points)
    shown = shown_of(runs)
    assert shown["state"] == "finished"
    assert losses(shown) == [(2, 3.0)]


def test_a_start_that_failed_shows_what_was_printed(tmp_path: Path, runs: Runs):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOG_FILE).write_text("x" * 10_000 + "tsugiki: no data\n")
    shown = shown_of(runs)
    assert (shown["state"], len(shown["log"])) == ("failed", 8000)
    assert shown["log"].endswith("tsugiki: no data\n")


KILLED = "its process ended without a message; something has killed it, perhaps because memory ran out"
FULL = "the disk is full; make room, for example by deleting runs, and then resume it"


@pytest.mark.parametrize(
    ("last", "reason", "mend"),
    [
        ("tsugiki: the base is broken", "the base is broken", "again"),
        ("tsugiki: ended by SIGTERM: a checkpoint of step 4 of 10 was written; to continue: tsugiki …", None, None),
        ("tsugiki: Ctrl-Cで停止しました", None, None),
        ("step 4 of 10", KILLED, "again"),
        ("tsugiki: cannot write x: No space left on device; make room", FULL, "resume"),
        ("OSError: [Errno 122] Disk quota exceeded", FULL, "resume"),
        ("safetensors_rust.SafetensorError: Error while serializing: I/O error: os error 28", FULL, "resume"),
        ("tsugiki: unexpected A: b (--debug shows where; please report it)", "unexpected A: b", "again"),
        ("tsugiki: ROOT/library/.texts/a.txt and ROOT/run/x are broken", "a.txt and run/x are broken", "again"),
    ],
)
def test_a_run_that_failed_has_a_reason_without_flags_and_paths_and_one_that_was_stopped_has_none(
    last: str, reason: str | None, mend: str | None, tmp_path: Path, runs: Runs
):
    folder, state = write_run(tmp_path, "run"), "failed" if reason else "stopped"
    (folder / LOG_FILE).write_text(f"step 3 of 10\n{last}\n".replace("ROOT", str(tmp_path)), encoding="utf-8")
    shown = shown_of(runs)
    assert (shown["state"], shown["reason"], shown["mend"]) == (state, reason, mend)
    assert (shown["can_resume"], shown["checkpoint"], str(tmp_path) in shown["log"]) == (True, None, False)
    (folder / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    shown = shown_of(runs)
    assert (shown["checkpoint"], shown["mend"]) == (4, reason and "resume")


def test_a_japanese_reason_names_no_flag(tmp_path: Path, runs: Runs):
    with speaking("ja"):
        message = _("unexpected {kind}: {error} (--debug shows where; please report it)").format(kind="A", error="b")
    (write_run(tmp_path, "run") / LOG_FILE).write_text(f"tsugiki: {message}\n", encoding="utf-8")
    assert "--" not in shown_of(runs)["reason"]


def program(folder: Path, script: str) -> str:
    """A program of the shell, in place of Python."""
    path = folder / "program"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return str(path)


def test_a_process_that_the_system_has_ended(tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch):
    folder = write_run(tmp_path, "run")
    monkeypatch.setattr(sys, "executable", program(tmp_path, "kill -KILL $$"))
    runs.processes.start(folder, [], tmp_path)
    while runs.processes.owner(folder) is not None:
        pass
    shown = shown_of(runs)
    assert shown["state"] == "failed"
    assert "SIGKILL" in shown["reason"]


_OWNER = """
import signal, sys, time
from pathlib import Path
from tsugiki.io.locks import sole_use
ended = []
signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
with sole_use(Path(sys.argv[1])):
    print("ready", flush=True)
    while not ended or (Path(sys.argv[1]) / "hold").exists():
        time.sleep(0.01)
    sys.exit(len(ended))
"""


def test_stop_signals_the_process_of_the_run_once(tmp_path: Path, runs: Runs):
    folder, run = write_run(tmp_path, "run"), runs.find("run")
    (folder / "hold").touch()
    owner = [sys.executable, "-c", _OWNER, str(folder)]  # it ends with the number of signals that it got
    with subprocess.Popen(owner, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        assert process_of(folder) == process.pid
        assert runs.details(run)["can_stop"]
        runs.stop(run)
        runs.stop(run)
        assert runs.details(run)["state"] == "stopping"
        (folder / "hold").unlink()
        assert process.wait(60) == 1
    assert runs.details(run)["state"] == "stopped"
    with pytest.raises(ApiError, match="run"):
        runs.stop(run)


def test_a_process_that_has_the_number_of_a_former_run_is_not_signalled(tmp_path: Path, runs: Runs):
    """The folder is in use, but its file names an innocent process."""
    folder = write_run(tmp_path, "run")
    with subprocess.Popen(["sleep", "600"]) as innocent, sole_use(folder):
        owner = folder / ".lock.json"
        for changes in ({"process": innocent.pid}, {"process": innocent.pid, "process_start": None}, {"process": -1}):
            owner.write_text(json.dumps(json.loads(owner.read_text()) | changes))
            with pytest.raises(Exception, match="no process"):
                runs.stop(runs.find("run"))
        assert innocent.poll() is None
        innocent.kill()


def test_the_queue_starts_one_run_after_the_other(
    tmp_path: Path, runs: Runs, processes: NotedProcesses, monkeypatch: pytest.MonkeyPatch
):
    for name in "abcde":
        write_run(tmp_path, f"runs/{name}")
    with speaking("ja"):
        for name in "aecdb":
            runs.begin(runs.find(f"runs/{name}"))
    assert runs.queue.names() == [f"runs/{name}" for name in "ecdb"]
    runs.stop(runs.find("runs/d"))  # it is taken out
    assert shown_of(runs, "runs/d")["state"] == "stopped"
    shown = [shown_of(runs, f"runs/{name}") for name in "ecb"]
    assert [(one["state"], one["place"]) for one in shown] == [("queued", 1), ("queued", 2), ("queued", 3)]
    assert [one["waits_for"] for one in shown] == ["runs/a", "runs/e", "runs/c"]
    runs.start_next()
    assert len(processes.commands) == 1  # a goes on
    after_a_restart, start, seen = Runs(tmp_path, processes), processes.start, []

    def noted(folder: Path, *given: Any) -> None:
        seen.append(shown_of(after_a_restart, f"runs/{folder.name}")["state"])
        start(folder, *given)

    monkeypatch.setattr(processes, "start", noted)
    shutil.rmtree(tmp_path / "runs" / "c")
    for name in ("runs/e", "", "runs/b"):  # in the turn of c nothing starts, as it was deleted
        processes.running = None
        after_a_restart.start_next()
        assert processes.running == (tmp_path / name if name else None)
    started = [(words[-1], spoken) for words, spoken in processes.commands]
    assert started == [("runs/a", "ja"), ("runs/e", "ja"), ("runs/b", "ja")]
    assert seen == ["starting"] * 2, "and never stopped, between the queue and its process"


def test_a_queue_is_worked_off_without_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runs_view, "_QUEUE_SECONDS", 0.01)
    processes = NotedProcesses()
    write_run(tmp_path, "runs/a")
    Runs(tmp_path, processes).queue.put("runs/a")
    runs = Runs(tmp_path, processes)  # of a server that has been started again
    runs.watch()
    while not processes.commands:
        pass
    assert runs.queue.names() == []
    assert processes.commands == [(["train", "--resume", "runs/a"], "en")]


def test_two_servers_in_one_folder_start_one_run_at_a_time(tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", program(tmp_path, "exec sleep 600"))
    for name in ("a", "b"):
        write_run(tmp_path, f"runs/{name}")
    first, second = runs, Runs(tmp_path, RunProcesses())
    start = first.processes.start

    def begin() -> None:
        second.begin(second.find("runs/b"))

    other = threading.Thread(target=begin)

    def slowly(*given: Any) -> None:
        other.start()
        other.join(0.2)  # if it does not wait for the first server, it finds that nothing goes on
        start(*given)

    monkeypatch.setattr(first.processes, "start", slowly)
    try:
        first.begin(first.find("runs/a"))
        other.join()
        assert second.queue.names() == ["runs/b"]
        assert shown_of(second, "runs/a")["state"] == "starting"
        with pytest.raises(ApiError, match="going on"):
            second.remove(second.find("runs/a"))
        second.start_next()
        assert second.queue.names() == ["runs/b"]
        second.stop(second.find("runs/a"))
        while second.going_on():
            pass
        second.start_next()
        assert first.going_on() == "runs/b"
    finally:
        first.processes.stop(tmp_path / "runs" / "a")
        second.processes.stop(tmp_path / "runs" / "b")


def test_a_queue_that_cannot_be_written_starts_nothing(
    tmp_path: Path, runs: Runs, processes: NotedProcesses, monkeypatch: pytest.MonkeyPatch
):
    write_run(tmp_path, "runs/a")
    runs.queue.put("runs/a")

    def full(*_given: Any) -> None:
        raise TsugikiError("no space left")

    monkeypatch.setattr(run_queue, "write_json", full)
    for _turn in range(2):  # it would start again and again
        with pytest.raises(TsugikiError):
            runs.start_next()
    assert processes.commands == []
    assert runs.queue.names() == ["runs/a"]


def test_a_run_that_another_server_has_just_taken_is_not_removed_from_the_queue(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(runs.queue, "names", lambda: ["runs/a"])  # read before it was taken
    assert not runs.queue.remove("runs/a")


def test_a_damaged_queue_is_empty(tmp_path: Path, runs: Runs):
    (tmp_path / "runs").mkdir()
    for content in ("[]", "{", '{"runs/a": 1, "../x": null}'):
        (tmp_path / "runs" / ".queue.json").write_text(content)
        assert runs.queue.names() == []


def test_a_run_that_has_not_begun_is_started_by_its_settings(tmp_path: Path, runs: Runs, processes: NotedProcesses):
    for name, settings in {"new": "", "moved": "", "code": "trust_remote_code: true\n"}.items():
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        out = "other" if name == "moved" else name
        (folder / SETTINGS_FILE).write_text(f"model: embedded\nout: runs/{out}\n{settings}")
        (folder / LOG_FILE).write_text("tsugiki: no data\n")
    for name in ("moved", "code"):
        with pytest.raises(ApiError, match=name):
            runs.begin(runs.find(f"runs/{name}"))
    assert shown_of(runs, "runs/new")["can_resume"]
    runs.begin(runs.find("runs/new"))
    assert processes.commands[0][0] == ["train", "runs/new/settings.yaml"]


def test_a_deleted_run_leaves_other_files_and_other_runs(tmp_path: Path, runs: Runs, processes: NotedProcesses):
    for name in "abc":
        folder = write_run(tmp_path, f"runs/{name}", status="finished")
        for file in (LOG_FILE, SETTINGS_FILE, "adapter_model.safetensors", "checkpoints/checkpoint-4/x", ".lock"):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).touch()
    (tmp_path / "runs" / "b" / "my notes.txt").touch()
    processes.running = tmp_path / "runs" / "c"
    with pytest.raises(ApiError, match="going on"):
        runs.remove(runs.find("runs/c"))
    for name in "ab":
        runs.queue.put(f"runs/{name}")
        runs.remove(runs.find(f"runs/{name}"))
    assert runs.queue.names() == []
    assert sorted(one.name for one in (tmp_path / "runs").iterdir() if one.name[0] != ".") == ["b", "c"]
    assert [one.name for one in (tmp_path / "runs" / "b").iterdir()] == ["my notes.txt"]
    assert (tmp_path / "runs" / "c" / "adapter_model.safetensors").exists()
    assert [one.name for one in runs.all()] == ["runs/c"]


def test_adapters_of_the_library_are_no_runs_that_could_be_deleted(tmp_path: Path, runs: Runs):
    write_run(tmp_path, "library/poet", status="finished")
    assert runs.all() == []
    with pytest.raises(ApiError, match="no run"):
        runs.find("library/poet")


def test_resume_starts_a_process_by_a_list_of_words(tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch):
    calls: list[Any] = []

    class Started:
        pid = os.getpid()

        def __init__(self, words: list[str], **options: Any) -> None:
            calls.append((words, options))

        def poll(self) -> None:
            return None

        wait = poll

    monkeypatch.setattr(runs_view.subprocess, "Popen", Started)
    monkeypatch.setattr(runs_view.os, "setpriority", lambda *_: None)
    name = "runs/$(touch x); 'a'"
    write_run(tmp_path, name)
    runs.begin(runs.find(name))
    [(words, options)] = calls
    assert words == [sys.executable, "-P", "-m", "tsugiki", "train", "--resume", name]
    assert options["start_new_session"]
    assert "shell" not in options
    assert options["cwd"] == tmp_path
    assert shown_of(runs, name)["state"] == "starting"
    with pytest.raises(ApiError, match="touch x"):
        runs.begin(runs.find(name))


def test_what_cannot_be_resumed(tmp_path: Path, runs: Runs):
    write_run(tmp_path, "done", status="finished")
    code = write_run(tmp_path, "code") / "run.json"
    record = json.loads(code.read_text())
    record["config"]["trust_remote_code"] = True
    code.write_text(json.dumps(record))
    used = write_run(tmp_path, "used")
    for name in ("done", "code"):
        with pytest.raises(Exception, match=name):
            runs.begin(runs.find(name))
    with sole_use(used), pytest.raises(Exception, match="used"):
        runs.begin(runs.find("used"))
    os.symlink(tmp_path / "target", used / LOG_FILE)
    with pytest.raises(Exception, match="cannot be started"):  # what is printed would go through a link
        runs.begin(runs.find("used"))
    assert not (tmp_path / "target").exists()
