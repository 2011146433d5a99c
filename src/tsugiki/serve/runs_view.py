"""The view Runs: the runs below the working directory, their curves, samples, time left, processes and queue.

What a run writes (`run.json`, `output.log`, `.lock.json`) is read while it is written, and may be damaged or hostile:
files have limits of size, links are not followed, and a record that cannot be read is shown as such.
"""

import math
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from starlette.routing import Route

from tsugiki.adapters.library import adapter_of_run
from tsugiki.errors import TsugikiError, error_text, system_error
from tsugiki.io.atomic import remove_empty
from tsugiki.io.digests import FileState, file_state
from tsugiki.io.file_names import RECORD_FILE
from tsugiki.io.formatting import format_duration, format_gigabytes, format_size
from tsugiki.io.json import read_json
from tsugiki.io.locks import OWNER_FILE, is_in_use, name_process, process_of
from tsugiki.io.run_folder import CHECKPOINTS, checkpoint_step, checkpoints, remove_run
from tsugiki.io.system import OWN_GROUP, ask_to_end
from tsugiki.language import _, language, marked, reader_environment, speaking
from tsugiki.report.run import REPORT_FILE, RESULTS, run_sections
from tsugiki.report.sections import selected, to_json
from tsugiki.serve.errors import ApiError
from tsugiki.serve.folders import base_name, entries, inside, read_end, without_paths
from tsugiki.serve.protocol import NameRequest
from tsugiki.serve.routes import get_route, post_route
from tsugiki.serve.run_queue import RunQueue
from tsugiki.serve.uploads import FOLDER as UPLOADS
from tsugiki.serve.uploads import data_names, short_id
from tsugiki.training.record.run_record import RunRecord, read_record
from tsugiki.training.settings.files import read_yaml

JOB_FILE = "job.json"
"""The file in a run's folder with what OpenAI's interface knows of it besides (`serve.fine_tuning`)."""
LOG_FILE = "output.log"
"""The file in a run's folder with the output of its process, if the server has started it."""
SETTINGS_FILE = "settings.yaml"
"""The file in a run's folder with the settings that the page has given it."""
RUNS_FOLDER = "runs"
"""The folder of new runs in the working directory."""
CHECKPOINT_MARK = ":ckpt-step-"
"""Stands between the name of a run and a step, in the name of a checkpoint as a model."""
_NICE = 5  # requests have priority over training steps
_DEPTH = 4  # levels of folders that are searched below the working directory
_MOST_FOLDERS = 5000  # folders that are searched
_NOT_ENTERED = frozenset({"checkpoints", "node_modules", "__pycache__"})
_LARGEST_RECORD = 64_000_000  # bytes
_KEPT_RECORDS = 64  # in the cache
_END_OF_LOG = 8000  # bytes
_LEAST_DISK = 1_000_000  # bytes; a run whose process ended with an error and that has less has failed by it
_QUEUE_SECONDS = 2.0  # between two looks whether the next run can start

State: TypeAlias = Literal["queued", "starting", "running", "stopping", "stopped", "finished", "failed", "unreadable"]
"""stopped: by a signal; failed: the process ended with an error; unreadable: the record cannot be read."""
_DISK_FULL = marked("the disk is full; make room, for example by deleting runs, and then resume it")
_OF_FULL_DISK = re.compile(r"No space left on device|Disk quota exceeded|os error (28|122)\b")
_OF_DEBUG = re.compile(r" ?[(（]--debug[^)）]*[)）]")
_STOPPED = re.compile(r"Ctrl-C|(?<![A-Z])SIG(INT|TERM|HUP|BREAK)(?![A-Z])")
"""In the last line of a run that a signal has stopped, in any language."""


class RunProcesses:
    """The processes that this server has started or stopped. It can be used from several threads."""

    def __init__(self) -> None:
        self._started: dict[Path, subprocess.Popen[bytes]] = {}
        self._stopping: dict[Path, int] = {}
        self._statuses: dict[Path, int] = {}
        self._lock = threading.RLock()

    def start(self, folder: Path, words: Sequence[str], directory: Path) -> None:
        """Start `tsugiki …` in a session of its own. Its output is appended to a file in the run's folder.

        No shell interprets the words. `directory` is the working directory.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        try:
            log = os.open(folder / LOG_FILE, flags, 0o666)
            try:
                process = subprocess.Popen(
                    # -P: a torch.py in the working directory is not imported.
                    [sys.executable, "-P", "-m", "tsugiki", *words],
                    cwd=directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=reader_environment(),
                    start_new_session=True,  # it goes on when the server ends, and Ctrl-C does not reach it
                    creationflags=OWN_GROUP,
                )
            finally:
                os.close(log)
        except OSError as error:
            raise TsugikiError(
                "the run in {folder} cannot be started: {reason}", folder=folder.name, reason=error_text(error, 200)
            ) from error
        if hasattr(os, "setpriority"):
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
        with suppress(TsugikiError):
            name_process(folder, process.pid)  # for other servers, until it has taken the lock itself
        threading.Thread(target=process.wait, daemon=True).start()  # so that they see when it has ended
        with self._lock:
            self._started[folder] = process
            self._statuses.pop(folder, None)

    def owner(self, folder: Path) -> int | None:
        """Return the id of the process of this machine that trains in a folder; None if there is none, or in doubt.

        A process that a server has started owns the folder from its start, any other from the time of its lock.
        """
        with self._lock:
            started = self._started.get(folder)
            if started is not None and started.poll() is None:
                return started.pid
            if started is not None:
                self._statuses[folder] = self._started.pop(folder).returncode
        return process_of(folder)

    def status(self, folder: Path) -> int:
        """Return the exit status of the last process that this server has started in a folder; 0 if there is none."""
        with self._lock:
            return self._statuses.get(folder, 0)

    def is_stopping(self, folder: Path) -> bool:
        """Return whether the process of a run has been asked to end, and has not ended yet."""
        with self._lock:
            if folder in self._stopping and self._stopping[folder] != self.owner(folder):
                del self._stopping[folder]
            return folder in self._stopping

    def any_started(self) -> Path | None:
        """Return the folder of a run whose process this server has started and that has not ended."""
        with self._lock:
            return next((folder for folder, process in self._started.items() if process.poll() is None), None)

    def stop(self, folder: Path) -> bool:
        """Ask the process that trains in a folder to end, and return whether there is one.

        It ends after its step, and writes a checkpoint. The signal is sent only once: a second one would end the
        process without the checkpoint.
        """
        with self._lock:
            if self.is_stopping(folder):
                return True
            pid = self.owner(folder)
            if pid is None:
                return False
            try:
                ask_to_end(pid)
            except OSError:  # it has ended, or is another user's
                return False
            self._stopping[folder] = pid
            return True


@dataclass(frozen=True)
class RunFolder:
    """A run below the working directory."""

    name: str
    """Its relative path, with slashes."""
    folder: Path
    created: float
    """When the first of its files was written, in seconds since 1970."""
    changed: float
    """When its record or its output changed."""


class Runs:
    """The runs below the working directory, of which one at a time is going on."""

    def __init__(self, root: Path, processes: RunProcesses, model: str = "", library: Path | None = None) -> None:
        """Create it; `model` is the server's base, as `--model` names it. Adapters in the library are no runs."""
        self.root, self.processes, self.model = root.resolve(), processes, model
        self.library = library and library.resolve()
        self.queue = RunQueue(self.root / RUNS_FOLDER / ".queue.json")
        self.beginning = self.queue.alone
        self._watching = False
        self._starting = ""  # the run that has left the queue, and has no process yet

    def names(self) -> list[str]:
        """Return the names of the runs that have an adapter, the most recently changed first."""
        return [run.name for run in self.all() if adapter_of_run(run.folder)]

    def folder(self, name: str) -> Path | None:
        """Return the folder of a run's newest adapter, or of a checkpoint; None if the run has none."""
        called, _mark, step = name.partition(CHECKPOINT_MARK)
        try:
            run = self.find(called).folder
        except ApiError:
            return None
        if not step:
            return adapter_of_run(run)
        return next((one for one in checkpoints(run / CHECKPOINTS) if step == str(checkpoint_step(one))), None)

    def find(self, name: str) -> RunFolder:
        """Return the run that a request names."""
        folder = inside(self.root, name)
        run = _run_in(folder, name)
        if run is None or (self.library and folder.is_relative_to(self.library)):
            raise ApiError(404, _("there is no run in {name!r}", name=name[:100]), code="not_found")
        return run

    def all(self) -> list[RunFolder]:
        """Return the runs, the last changed first; some may be missing if there are too many folders.

        Subfolders of a run, hidden folders and symbolic links are skipped.
        """
        found: list[RunFolder] = []
        waiting = deque([(self.root, 0)])
        seen = 0
        while waiting and seen < _MOST_FOLDERS:
            folder, depth = waiting.popleft()
            seen += 1
            name = folder.relative_to(self.root).as_posix()
            run = _run_in(folder, name) if depth else None
            if run is not None:
                found.append(run)
            elif depth < _DEPTH:
                waiting.extend(
                    (Path(entry.path), depth + 1)
                    for entry in entries(folder)
                    if entry.is_dir(follow_symlinks=False)
                    and entry.name not in _NOT_ENTERED
                    and Path(entry.path) != self.library
                )
        found.sort(key=lambda run: -run.changed)
        return found

    def details(self, run: RunFolder) -> dict[str, Any]:
        """Return the summary of a run, and the sections that the page shows."""
        record, waiting = record_in(run.folder), self.queue.names()
        shown = {**self.summary(run), "log": self._end_of_log(run.folder)}
        if shown["state"] == "queued":
            before = waiting[: waiting.index(run.name)]
            shown["waits_for"] = before[-1] if before else self.going_on()
        if isinstance(record, RunRecord):
            shown["sections"] = to_json(selected(run_sections(record), *RESULTS, "decisions"))
        return shown

    def stop(self, run: RunFolder) -> None:
        """Ask a run to end after its present step, or take it out of the queue."""
        is_running = self.summary(run)["state"] != "finished"  # or its process only ends
        if not self.queue.remove(run.name) and not (is_running and self.processes.stop(run.folder)):
            message = _("no process that could be stopped from here trains in {name}", name=run.name)
            raise ApiError(400, message, code="not_running")

    def begin(self, run: RunFolder) -> None:
        """Start or continue a run in a process of its own; or, if another one is going on, put it into the queue."""
        with self.beginning():
            self._refuse_going_on(run)
            words = self._words(run)
            if self.going_on() is None and not self.queue.names():
                self.processes.start(run.folder, words, self.root)
            else:
                self.queue.put(run.name)
                self.watch()

    def remove(self, run: RunFolder) -> None:
        """Delete what a run has written into its folder, and the folder if it is empty then."""
        with self.beginning():
            self.queue.remove(run.name)
            self._refuse_going_on(run)
            remove_run(run.folder)
            for name in (LOG_FILE, SETTINGS_FILE, JOB_FILE, REPORT_FILE, "README.md", ".lock", OWNER_FILE):
                try:
                    (run.folder / name).unlink(missing_ok=True)
                except OSError as error:
                    raise system_error(_("cannot remove {path}: {reason}"), f"{run.name}/{name}", error) from error
            remove_empty([run.folder])

    def going_on(self) -> str | None:
        """Return the name of a run that is going on here; None if there is none.

        A second one would compete with it for memory and time.
        """
        if own := self.processes.any_started():
            return own.relative_to(self.root).as_posix()
        return next((run.name for run in self.all() if is_in_use(run.folder) or process_of(run.folder)), None)

    def watch(self) -> None:
        """Start the runs of the queue one after the other, in a thread that ends with the queue or the process."""
        if self.queue.names():  # the lock would create the folder
            with self.beginning():
                if not self._watching:
                    self._watching = True
                    threading.Thread(target=self._work_through_queue, daemon=True).start()

    def start_next(self) -> None:
        """Start the first run of the queue if none is going on. One that cannot start any more is left out."""
        with self.beginning():
            if self.going_on():
                return
            with self.queue.changing() as waiting:
                name, spoken = waiting.pop(0) if waiting else ("", language())  # another server may have taken it
                self._starting = name
            with speaking(spoken), suppress(ApiError, TsugikiError):
                run = self.find(name)
                self.processes.start(run.folder, self._words(run), self.root)
            self._starting = ""

    def _work_through_queue(self) -> None:
        """Start the next run of the queue whenever none is going on, until the queue is empty."""
        while self._watching:
            time.sleep(_QUEUE_SECONDS)
            with self.beginning(), suppress(TsugikiError):  # such as a full disk: tried again at the next tick
                self.start_next()
                self._watching = bool(self.queue.names())

    def _words(self, run: RunFolder) -> list[str]:
        """Return the command that starts or continues a run, as words after `tsugiki`."""
        record = record_in(run.folder)
        if isinstance(record, TsugikiError):
            raise record
        if not _can_begin(run, record):
            message = _("the run in {name} cannot be continued: it is finished, or has not begun", name=run.name)
            raise ApiError(400, message, code="not_resumable")
        if (record.config.to_dict() if record else settings_given(run.folder)).get("trust_remote_code"):
            message = _("the run in {name} runs code of its model; continue it in a terminal", name=run.name)
            raise ApiError(400, message, code="not_resumable")
        return ["train", "--resume", run.name] if record else ["train", f"{run.name}/{SETTINGS_FILE}"]

    def is_at_rest(self, folder: Path) -> bool:
        """Return whether a folder is not that of a run that is going on or waits."""
        waits = folder.relative_to(self.root).as_posix() in self.queue.names()
        return not waits and not is_in_use(folder) and self.processes.owner(folder) is None

    def _refuse_going_on(self, run: RunFolder) -> None:
        if not self.is_at_rest(run.folder):
            message = _("the run in {name} is going on or waits; stop it first", name=run.name)
            raise ApiError(400, message, code="busy")

    def _end_of_log(self, folder: Path) -> str:
        text = read_end(folder / LOG_FILE, _END_OF_LOG)
        return without_paths(text, *([self.library / UPLOADS, self.library] if self.library else []), self.root)

    def readable(self, run: RunFolder) -> RunRecord | None:
        """Return the record of a run if it has one that can be read."""
        record = record_in(run.folder)
        return record if isinstance(record, RunRecord) else None

    def summary(self, run: RunFolder) -> dict[str, Any]:
        """Return what the list shows of a run."""
        record, waiting = record_in(run.folder), self.queue.names()
        state = self._state(run, record, waiting)
        saved = checkpoints(run.folder / CHECKPOINTS)
        going_on = state in ("starting", "running", "stopping")
        reason = self._reason(run.folder) if state == "failed" else None
        shown: dict[str, Any] = {
            "id": job_id(run.name),
            "name": run.name,
            "state": state,
            "changed": run.changed,
            "can_stop": going_on and self.processes.owner(run.folder) is not None,
            "can_resume": state in ("stopped", "failed") and _can_begin(run, record),
            "place": waiting.index(run.name) + 1 if state == "queued" else None,
            "checkpoint": checkpoint_step(saved[-1]) if saved else None,
            "reason": reason,
            # What most likely mends it: to go on from its checkpoint, or with more room; or other settings.
            "mend": reason and ("resume" if saved or reason == _(_DISK_FULL) else "again"),
            "talks": adapter_of_run(run.folder) is not None,
        }
        if isinstance(record, TsugikiError):
            return {**shown, "error": without_paths(str(record), self.root)}
        if record is None:
            return shown
        training = record.training
        steps = record.resolved_settings.get("steps")
        model, left = record.config.model, seconds_left(record)
        return {
            **shown,
            "model": base_name(model) if isinstance(model, str) else None,
            "is_served": model == self.model,
            "data": data_names(record.config.data),
            "method": record.config.method,
            "learning_rate": _number(record.chosen("learning_rate")),
            "step": training.steps if training else 0,
            "steps": steps if isinstance(steps, int) else None,
            "loss": _number(training.loss) if training and training.steps else None,
            "memory": format_gigabytes(training.peak_memory) if training and training.peak_memory else None,
            "held_out": [_number(entry.loss) for entry in (record.evaluations[:1] + record.evaluations[1:][-1:])],
            "tokens_per_second": _number(record.all_tokens_per_second()),
            "time_left": format_duration(left) if state == "running" and left is not None else None,
        }

    def _state(self, run: RunFolder, record: RunRecord | TsugikiError | None, waiting: list[str]) -> State:
        folder, in_use = run.folder, is_in_use(run.folder)
        if isinstance(record, RunRecord) and record.status == "finished" and not in_use:
            # Its process may still live for a moment; one that continues it has the lock.
            return "failed" if record.kept_round == 0 else "finished"
        if run.name == self._starting or in_use or self.processes.owner(folder) is not None:
            if self.processes.is_stopping(folder):
                return "stopping"
            return "running" if in_use and isinstance(record, RunRecord) else "starting"
        if run.name in waiting:
            return "queued"
        if isinstance(record, TsugikiError):
            return "unreadable"
        return "failed" if self._reason(folder) else "stopped"

    def _reason(self, folder: Path) -> str | None:
        """Return why the process of a run that has not finished failed; None if it was stopped, or has no output.

        The command's last line is its error, or names the signal that stopped it. If it is another one, the process was
        killed.
        """
        last = (self._end_of_log(folder).strip().splitlines() or [""])[-1]
        status = self.processes.status(folder)
        if _OF_FULL_DISK.search(last):
            return _(_DISK_FULL)
        if last.startswith("tsugiki: "):
            return None if _STOPPED.search(last) else _OF_DEBUG.sub("", last.removeprefix("tsugiki: "))
        if status and shutil.disk_usage(folder).free < _LEAST_DISK:  # there was no room for the error itself
            return _(_DISK_FULL)
        if status < 0:
            name = signal.Signals(-status).name
            return _("the system ended it ({signal}), perhaps because memory ran out", signal=name)
        if last and not status and (folder / RECORD_FILE).exists():
            return _("its process ended without a message; something has killed it, perhaps because memory ran out")
        return last or None


def run_routes(runs: Runs) -> list[Route]:
    """Return the routes of the view Runs."""
    return [
        get_route("run", lambda name: runs.details(runs.find(name)), "name"),
        post_route("runs/remove", NameRequest, lambda asked: runs.remove(runs.find(asked.name))),
    ]


def settings_given(folder: Path) -> dict[str, Any]:
    """Return the settings that a run was given: those of the page's file, or else of its record; may be empty."""
    path = folder / SETTINGS_FILE
    with suppress(OSError, TsugikiError):
        if stat.S_ISREG(path.lstat().st_mode):
            return read_yaml(path)
    record = record_in(folder)
    return record.config.to_dict() if isinstance(record, RunRecord) else {}


def _can_begin(run: RunFolder, record: RunRecord | TsugikiError | None) -> bool:
    """Return whether a run that is not going on can be continued, or started by the page's file of settings."""
    if record is None:
        return settings_given(run.folder).get("out") == run.name
    return isinstance(record, RunRecord) and record.status != "finished"


def _run_in(folder: Path, name: str) -> RunFolder | None:
    """Return the run in a folder; None if it holds neither a record nor the output of a process."""
    times = {}
    for file in (RECORD_FILE, LOG_FILE, SETTINGS_FILE, ".lock"):
        try:
            times[file] = os.lstat(folder / file).st_mtime
        except OSError:
            continue
    changed = [times[file] for file in (RECORD_FILE, LOG_FILE) if file in times]
    return RunFolder(name, folder, min(times.values()), max(changed)) if changed else None


def record_in(folder: Path) -> RunRecord | TsugikiError | None:
    """Return the record of a run, the error if it cannot be read, or None if there is none."""
    try:
        info = (folder / RECORD_FILE).lstat()
    except OSError:
        return None
    if not stat.S_ISREG(info.st_mode):
        return TsugikiError("{path} is not a file", path=RECORD_FILE)
    if info.st_size > _LARGEST_RECORD:
        size = format_size(_LARGEST_RECORD)
        return TsugikiError("{path} has more than {size}", path=RECORD_FILE, size=size)
    return _read_record(folder, file_state(info))


@lru_cache(maxsize=_KEPT_RECORDS)
def _read_record(folder: Path, state: FileState) -> RunRecord | TsugikiError:
    """Return the record of a run, or the error; `state`, the state of its file, is a part of the cache's key."""
    try:
        return read_record(folder)
    except TsugikiError as error:
        return error


def job_id(name: str) -> str:
    """Return the id of the job of the run with a name."""
    return short_id("ftjob", name)


def noted_of(folder: Path) -> dict[str, Any]:
    """Return what OpenAI's interface has noted of a run; empty if there is nothing that can be read."""
    with suppress(OSError, TsugikiError):
        if stat.S_ISREG((folder / JOB_FILE).lstat().st_mode):
            return read_json(folder / JOB_FILE)
    return {}


def seconds_left(record: RunRecord) -> float | None:
    """Return the time that the remaining steps will take at the mean speed so far; None before the first step."""
    training, steps = record.training, record.resolved_settings.get("steps")
    if training is None or training.steps < 1 or not isinstance(steps, int):
        return None
    return _number(training.seconds / training.steps * max(0, steps - training.steps))


def _number(value: Any) -> float | None:
    """Return a finite number; None for any other value, because JSON has no others."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
