"""A working directory with texts and runs, and a server whose page shows them."""

import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tests.runs import run_config
from tests.serve.conftest import Running, start
from tests.tiny import TEXT
from tsugiki.language import language
from tsugiki.serve import LOG_FILE, RunProcesses, Runs, Training, Uploads, Workspace, file_id, job_id
from tsugiki.training import LossPoint, RunRecord, Sample, TrainingFigures, new_record

JSON = {"Content-Type": "application/json"}


@dataclass
class Place:
    """The server and its working directory."""

    running: Running
    directory: Path
    token: str

    @property
    def uploads(self) -> Path:
        """The folder of the texts that the page has sent."""
        return self.running.library / ".texts"

    def get(self, path: str, **query: Any) -> Any:
        return httpx2.get(f"{self.running.url}/page/api/{path}", params=query, timeout=120)

    def post(self, path: str, body: Any) -> Any:
        headers = {"X-Page-Token": self.token, **JSON}
        url = f"{self.running.url}/page/api/{path}"
        return httpx2.post(url, content=json.dumps(body), headers=headers, timeout=600)

    def runs(self) -> list[Any]:
        """What the page shows of each job."""
        return [job["run"] for job in self.jobs("", "?limit=200").json()["data"]]

    def jobs(self, name: str, what: str = "", body: Any = None) -> Any:
        """The answer of OpenAI's interface, of one job if a run is named; with a body, or `what` is done to it."""
        url = f"{self.running.url}/v1/fine_tuning/jobs{f'/{job_id(name)}' if name else ''}{what}"
        is_read = body is None and what[1:] not in ("cancel", "pause", "resume")
        return (
            httpx2.get(url, timeout=120)
            if is_read
            else httpx2.post(url, content=json.dumps(body or {}), headers=JSON, timeout=120)
        )

    def begin(self, **settings: Any) -> Any:
        """Start a run as the page does."""
        return self.jobs("", body={"settings": settings})

    def send(self, name: str, content: bytes, purpose: str = "fine-tune", measured: bool = True) -> Any:
        """Send a text, with or without the header Content-Length."""
        form = {"data": {"purpose": purpose}, "files": {"file": (name, content)}}
        request = httpx2.Request("POST", f"{self.running.url}/v1/files", **form)
        body, headers = request.read(), {"Content-Type": request.headers["Content-Type"]}
        return httpx2.post(request.url, content=body if measured else iter([body]), headers=headers, timeout=60)

    def discard(self, name: str) -> Any:
        """Remove the text with this name."""
        return httpx2.delete(f"{self.running.url}/v1/files/{file_id(name)}")

    def sent(self) -> list[str]:
        """The names of the texts that were sent."""
        return [one["filename"] for one in httpx2.get(f"{self.running.url}/v1/files").json()["data"]]


def zipped(files: dict[str, bytes], encrypted: bool = False) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    content = bytearray(packed.getvalue())
    if encrypted:
        content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


@contextmanager
def serve_in(directory: Path, served_files: tuple[str, Path], **changes: Any) -> Iterator[Place]:
    """Serve a new working directory; `texts` below it has texts, and a link that leads out of it."""
    texts = directory / "texts"
    (texts / "novels").mkdir(parents=True)
    (texts / "a.txt").write_text(TEXT, encoding="utf-8")
    for number in range(4):
        text = f"{number}\n{TEXT[number * 300 : number * 300 + 400]}"  # no more is common to two of them
        (texts / "novels" / f"{number}.txt").write_text(text, encoding="utf-8")
    (texts / "picture.png").touch()
    (texts / ".hidden.txt").write_text(TEXT, encoding="utf-8")
    (directory.parent / "secret.txt").write_text("secret", encoding="utf-8")
    os.symlink(directory.parent / "secret.txt", texts / "link.txt")
    os.symlink(directory.parent, texts / "out")
    workspace = Workspace(served_files[0], directory, texts, changes.get("aozora", str(directory)))
    with start(*served_files, workspace=workspace, **changes) as running:
        token = re.findall(r'name="page-token" content="([\w-]+)"', httpx2.get(running.url).text)[0]
        yield Place(running, directory, token)


def record_of(directory: Path, name: str, **changes: Any) -> RunRecord:
    """The record of a run of 10 steps of which 4 are done."""
    record = new_record(run_config(directory, name, model="embedded", data="a.txt").to_record())
    record.resolved_settings = {"steps": 10}
    record.loss_curve = [LossPoint(step=step, loss=5 - step / 4, learning_rate=0.1) for step in range(1, 5)]
    figures: Any = {"steps": 4, "loss": 4.5, "tokens": 400, "seconds": 8.0, "tokens_per_second": 50.0}
    record.training = TrainingFigures(**figures, peak_memory=10**9)
    record.samples = [Sample(step=step, prompt="枝を", text=f"切る{step}<b>") for step in (0, 4)]
    return record.model_copy(update=changes)


def write_run(directory: Path, name: str, **changes: Any) -> Path:
    """Write the record of a run into its folder."""
    folder = directory / name
    folder.mkdir(parents=True, exist_ok=True)
    record_of(directory, name, **changes).write(folder)
    return folder


class NotedProcesses(RunProcesses):
    """Keeps the words of each command and its language; a process goes on until the test ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.commands: list[tuple[list[str], str]] = []
        self.running: Path | None = None

    def start(self, folder: Path, words: Any, directory: Path) -> None:
        self.commands.append((list(words), language()))
        (folder / LOG_FILE).touch()
        self.running = folder

    def owner(self, folder: Path) -> int | None:
        return os.getpid() if folder == self.running else None

    def any_started(self) -> Path | None:
        return self.running


def training_in(directory: Path) -> Training:
    """What prepares and starts runs, whose processes are none, on the text `a.txt`."""
    (directory / "texts").mkdir(exist_ok=True)
    (directory / "texts" / "a.txt").write_text(TEXT)
    workspace = Workspace("embedded", directory, directory / "texts", "https://localhost")
    return Training(workspace, Runs(directory, NotedProcesses()), Uploads(directory / "sent"))
