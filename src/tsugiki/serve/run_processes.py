"""The processes of runs: start a process that outlives the server, find the process that owns a run, and stop it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tsugiki.errors import TsugikiError, error_text
from tsugiki.io.locks import process_of
from tsugiki.language import VARIABLE, _, language

LOG_FILE = "output.log"
"""The file in a run's folder with the output of its process, if the server has started it."""
_NICE = 5  # requests have priority over training steps


class RunProcesses:
    """The processes that this server has started or stopped. It can be used from several threads."""

    def __init__(self) -> None:
        self._started: dict[Path, subprocess.Popen[bytes]] = {}
        self._stopping: dict[Path, int] = {}
        self._lock = threading.Lock()

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
                    env={**os.environ, VARIABLE: language()},
                    start_new_session=True,  # it goes on when the server ends, and Ctrl-C does not reach it
                )
            finally:
                os.close(log)
        except OSError as error:
            raise TsugikiError(
                _("the run in {folder} cannot be started: {reason}").format(
                    folder=folder.name, reason=error_text(error, 200)
                )
            ) from error
        if hasattr(os, "setpriority"):
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
        with self._lock:
            self._started[folder] = process

    def owner(self, folder: Path) -> int | None:
        """Return the id of the process of this machine that trains in a folder; None if there is none, or in doubt.

        A process that this server has started owns the folder from its start, any other from the time of its lock.
        """
        with self._lock:
            started = self._started.get(folder)
            if started is not None and started.poll() is None:
                return started.pid
            self._started.pop(folder, None)
        return process_of(folder)

    def is_stopping(self, folder: Path) -> bool:
        """Return whether the process of a run has been asked to end, and has not ended yet."""
        with self._lock:
            pid = self._stopping.get(folder)
        if pid is None:
            return False
        if pid == self.owner(folder):
            return True
        with self._lock:
            self._stopping.pop(folder, None)
        return False

    def any_started(self) -> Path | None:
        """Return the folder of a run whose process this server has started and that has not ended."""
        with self._lock:
            return next((folder for folder, process in self._started.items() if process.poll() is None), None)

    def stop(self, folder: Path) -> bool:
        """Ask the process that trains in a folder to end, and return whether there is one.

        It ends after its step, and writes a checkpoint. The signal is sent only once: a second one would end the
        process without the checkpoint.
        """
        if self.is_stopping(folder):
            return True
        pid = self.owner(folder)
        if pid is None:
            return False
        with self._lock:
            if self._stopping.get(folder) == pid:
                return True
            self._stopping[folder] = pid
        try:
            os.kill(pid, signal.SIGTERM)
        except OSError:  # it has ended, or is another user's
            with self._lock:
                self._stopping.pop(folder, None)
            return False
        return True
