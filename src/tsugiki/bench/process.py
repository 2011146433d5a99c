"""A contender's process, as its parent sees it."""

import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from tsugiki.bench.work import Work

_KILLED = -9
_PATIENCE = 10  # seconds


class Failed(Exception):
    """A contender could not go on; the text says why."""


class Process:
    """A worker that has loaded its model and waits for its turn.

    Raises:
        Failed: it did not come so far.
    """

    def __init__(self, name: str, work: Work) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (close)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tsugiki.bench.worker", name, json.dumps(asdict(work))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.name = name
        ready = self._answer()
        self.notes: dict[str, str] = ready["ready"]
        self.loaded: int | None = ready["loaded"]
        """Memory before the first step, in bytes."""
        self.resident = self.loaded
        """Memory after the last."""

    def step(self) -> dict[str, Any]:
        """Let it take one step; returns what it says of it (`StepBarrier.end`).

        Raises:
            Failed: it did not come through.
        """
        assert self._process.stdin
        try:
            print("step", file=self._process.stdin, flush=True)
        except BrokenPipeError as error:
            raise Failed(self._end()) from error
        answer = self._answer()
        self.resident = answer["resident"]
        return answer

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        assert self._process.stdout
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        try:
            line = self._process.stdout.readline()
        except BaseException:  # Ctrl-C while it computes
            self._process.kill()
            raise
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._end()}
        if "error" in answer:
            self.close()
            raise Failed(answer["error"])
        return answer

    def _end(self) -> str:
        """Why it ended without a word."""
        status = self._process.wait()
        if status == _KILLED:
            return "killed by the system, most likely for want of memory"
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "")
        return f"ended with status {status}: {last.strip()[:300]}"
