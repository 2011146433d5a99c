"""Servers as whole processes of this machine, and requests to them."""

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

_TICKS = os.sysconf("SC_CLK_TCK")
_SECONDS = 600  # in which a server must answer


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    process: "subprocess.Popen[str]"
    url: str

    @property
    def cpu_seconds(self) -> float:
        """Processor time so far, of all threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    @property
    def switches(self) -> int:
        """How often its threads have woken up."""
        found = 0
        for status in Path(f"/proc/{self.process.pid}/task").glob("*/status"):
            lines = status.read_text().splitlines()
            found += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))
        return found

    @property
    def resident(self) -> int:
        """Bytes of memory."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def threads(self) -> int:
        """The number of threads."""
        return len(list(Path(f"/proc/{self.process.pid}/task").iterdir()))

    @property
    def files(self) -> int:
        """The number of open files and connections."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@dataclass
class Answers:
    """What came back."""

    tokens: int = 0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    """Seconds to the first token of each request."""
    statuses: Counter[str] = field(default_factory=Counter)


@contextmanager
def server(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[Served]:
    """Run a server in the block; {port} in the command is a free port, at which it answers.

    Raises:
        RuntimeError: it ends, or does not answer in time.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = [part.replace("{port}", str(port)) for part in command]
    with subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=sys.stderr, text=True, env={**os.environ, **environment}
    ) as process:
        served = Served(process, f"http://127.0.0.1:{port}")
        try:
            _wait(served)
            yield served
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(served: Served) -> None:
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        if served.process.poll() is not None:
            break
        with suppress(httpx2.HTTPError):
            if httpx2.get(f"{served.url}/health", timeout=5).status_code == 200:
                return
        time.sleep(0.05)
    raise RuntimeError(f"{served.process.args!r} does not answer")


def prompt(generator: random.Random, length: int) -> list[int]:
    """Return random tokens that every vocabulary has."""
    return [generator.randrange(10, 5000) for _ in range(length)]


async def messages(answer: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    """Yield the messages of a stream."""
    async for line in answer.aiter_lines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))
