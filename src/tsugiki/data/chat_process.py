"""Render chat templates in a separate process, with limits of time and memory.

A chat template is a program that comes with a model. Jinja's sandbox keeps it from files and from Python's internals,
but not from endless loops, or from expressions that create gigabytes of text (`'a' * 10**10`, `'%9999999999d' % 1`). No
check inside the process stops all of these, so the operating system does: a process that exceeds a limit is ended, and
the next conversation starts another one. Starting takes about a second; a call takes 0.1 ms more than rendering.

                     limit of time           limit of memory
    Linux            5 s of processor time   500 MB
    macOS            5 s of processor time   none
    Windows          60 s                    none
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tsugiki.errors import TsugikiError
from tsugiki.language import _

_SECONDS = 5
_MEGABYTES = 500
_HANG = 60  # seconds of wall time, for Windows; much more than _SECONDS, because the machine may be busy

_lock = threading.Lock()
_processes: dict[int, subprocess.Popen[bytes]] = {}
"""Id of this process -> its child that renders. A fork of this process has another id, and so starts its own child."""


class LimitExceeded(Exception):
    """The process was ended by one of its limits, or crashed. The message says which limits there are."""


def call(function: str, **arguments: Any) -> Any:
    """Call a function of `chat_worker.FUNCTIONS` in the other process.

    Arguments and result are JSON values. Only one call runs at a time.

    Raises:
        LimitExceeded: the call took too much time or memory.
        TsugikiError: the function raised it.
    """
    request = json.dumps({"function": function, "arguments": arguments}).encode()
    with _lock:
        process = _running()
        try:
            answer = _ask(process, request)
        except BaseException:  # after an interruption, the next call would read the answer to this call
            _end(process)
            raise
        if not answer:
            _end(process)
            raise LimitExceeded(
                _("takes more than {seconds} s or {megabytes} MB of memory").format(
                    seconds=_SECONDS, megabytes=_MEGABYTES
                )
            )
    result = json.loads(answer)
    if "error" in result:
        raise TsugikiError(result["error"])
    return result["result"]


def _ask(process: subprocess.Popen[bytes], request: bytes) -> bytes:
    """Send a request, and return the line with its answer; empty if the process has ended."""
    assert process.stdin
    assert process.stdout
    try:
        with _wall_time_limit(process):
            process.stdin.write(request + b"\n")
            process.stdin.flush()
            return process.stdout.readline()
    except OSError:  # the process ended while it read the request
        return b""


@contextmanager
def _wall_time_limit(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End the process if the block takes too long, on Windows, which has no limit of processor time."""
    if os.name != "nt":
        yield
        return
    timer = threading.Timer(_HANG, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _running() -> subprocess.Popen[bytes]:
    process = _processes.get(os.getpid())
    if process is None or process.poll() is not None:
        process = subprocess.Popen(
            # -P: a json.py in the working directory is not imported.
            [sys.executable, "-P", "-m", "tsugiki.data.chat_worker", str(_SECONDS), str(_MEGABYTES * 10**6)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # so that Ctrl-C interrupts only this process
        )
        _processes[os.getpid()] = process
        assert process.stdout
        if not process.stdout.readline():
            raise RuntimeError(f"the process for chat templates ended with status {process.wait()}")
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    _processes.pop(os.getpid(), None)
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe
        with suppress(OSError):
            pipe.close()


@atexit.register
def _close() -> None:
    process = _processes.get(os.getpid())
    if process is not None:
        _end(process)
