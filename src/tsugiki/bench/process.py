"""The parent's handle of the process of one entry."""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from tsugiki.bench.entries import BenchmarkEntry
from tsugiki.bench.workload import Workload

KILLED = "killed by the system, probably because memory ran out"
"""The reason for the failure of a process that was ended by SIGKILL."""
_SIGKILL = -9
_EXIT_TIMEOUT = 10  # seconds


class EntryFailed(Exception):
    """An entry's process failed; the message gives the reason."""


class EntryProcess:
    """A worker process that has loaded its model and waits for its first step.

    Raises:
        EntryFailed: the process ended before the model was loaded.
    """

    def __init__(self, name: str, entry: BenchmarkEntry, workload: Workload) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (close)
        self._process = subprocess.Popen(
            # -P: a json.py in the working directory is not imported.
            [sys.executable, "-P", "-m", "tsugiki.bench.worker", entry.function, json.dumps(asdict(workload))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **entry.environment},
        )
        self.name = name
        ready = self._read_answer()
        self.notes: dict[str, str] = ready["ready"]
        self.loaded: int | None = ready["loaded"]
        """Memory before the first step, in bytes."""
        self.resident = self.loaded
        """Memory after the latest step, in bytes."""

    def step(self) -> dict[str, Any]:
        """Let the process take one step, and return its message (see `StepBarrier.end`).

        Raises:
            EntryFailed: the process ended during the step.
        """
        assert self._process.stdin
        try:
            print("step", file=self._process.stdin, flush=True)
        except BrokenPipeError as error:
            raise EntryFailed(self._exit_reason()) from error
        answer = self._read_answer()
        self.resident = answer["resident"]
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        assert self._process.stdout
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _read_answer(self) -> dict[str, Any]:
        assert self._process.stdout
        try:
            line = self._process.stdout.readline()
        except BaseException:  # Ctrl-C during a step
            self._process.kill()
            raise
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._exit_reason()}
        if "error" in answer:
            self.close()
            raise EntryFailed(answer["error"])
        return answer

    def _exit_reason(self) -> str:
        """Return the reason why the process ended without an error message."""
        status = self._process.wait()
        if status == _SIGKILL:
            return KILLED
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "")
        return f"exited with status {status}: {last.strip()[:300]}"
