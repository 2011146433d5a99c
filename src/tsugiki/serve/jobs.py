"""Jobs of the view Train: previews, plans and searches, each in a process of its own with a time limit.

Texts, tokenizers and models are read in this process (`job_worker`), so that none of them can block or end the server.
"""

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.requests import Request

from tsugiki.errors import TsugikiError
from tsugiki.language import _, reader_environment
from tsugiki.serve.errors import ApiError, unless_disconnected

_LARGEST_ANSWER = 8_000_000  # bytes


class Jobs:
    """Runs one job at a time; others wait for it."""

    def __init__(self, directory: Path, texts: Path) -> None:
        """Create it; paths in arguments are relative to `directory`, and results name files of `texts` without it."""
        self._directory, self._texts, self._busy = directory, texts, asyncio.Lock()

    async def run(self, request: Request, function: str, seconds: float, **arguments: Any) -> Any:
        """Call a function of `job_worker.FUNCTIONS` in a new process, and return its result.

        The process is ended after these seconds, or if the client disconnects; the body of the request has been read.
        """
        async with self._busy:
            call = {"function": function, "arguments": arguments, "seconds": seconds}
            answer = await _ask(request, json.dumps(call).encode(), seconds, self._directory)
        try:
            result = json.loads(answer.replace(f"{self._texts}{os.sep}".encode(), b""))
        except ValueError:
            result = {"error": _("the process ended without a result; it may have run out of memory")}
        if "error" in result:
            raise TsugikiError(result["error"])
        return result["result"]


async def _ask(request: Request, call: bytes, seconds: float, directory: Path) -> bytes:
    """Return the line that the process prints; empty if it prints none, or one that is too long."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # a torch.py in the working directory is not imported
        "-m",
        "tsugiki.serve.job_worker",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=directory,
        env=reader_environment(),
        start_new_session=True,
        limit=_LARGEST_ANSWER,
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write(call + b"\n")
    try:
        async with asyncio.timeout(seconds):
            return await unless_disconnected(request, process.stdout.readline())
    except TimeoutError as error:
        message = _("it takes more than {seconds:.0f} s; choose fewer texts", seconds=seconds)
        raise ApiError(503, message) from error
    except ValueError:  # an answer that is too long
        return b""
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
        await process.wait()
