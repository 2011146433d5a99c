"""`tsugiki serve`: what is refused before it starts, and a server that a signal ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.tiny import save_tiny

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")


def test_what_is_refused(base: str, run, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for arguments, said in (
        (("--host", "0.0.0.0"), "0.0.0.0"),
        (("--api-key", ""), "key"),
        (("--api-key-file", "nowhere"), "nowhere"),
        (("--adapter", "nobody"), "nobody"),
        (("--allow-host", "http://a"), "http://a"),
        (("--adapter", "a=empty"), "empty"),
        (("--host", "192.0.2.1", "--api-key", "k"), "192.0.2.1"),
    ):
        status, out, err = run("serve", "--model", base, "--port", "0", *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert said in err


def served(monkeypatch: pytest.MonkeyPatch, look: Callable[[Any, Any], Any]) -> list[Any]:
    """A list that gets what is seen of the engine and the access of each server, which ends before it begins."""
    from tsugiki.serve import server

    def new_app(engine: Any, adapters: object, access: Any, *_others: object) -> None:
        seen.append(look(engine, access))
        raise KeyboardInterrupt

    seen: list[Any] = []
    monkeypatch.setattr(server, "new_app", new_app)
    return seen


def test_the_key_leaves_the_environment(base: str, run, monkeypatch: pytest.MonkeyPatch):
    seen = served(monkeypatch, lambda _engine, access: (access.api_key, "TSUGIKI_API_KEY" in os.environ))
    for flags, key in (((), "of the environment"), (("--api-key", "given"), "given")):
        monkeypatch.setenv("TSUGIKI_API_KEY", "of the environment")
        assert run("serve", "--model", base, "--port", "0", *flags)[0] == 0
        assert seen.pop() == (key, False), "processes for previews, runs and chat templates must not get it"


def test_the_dtype_is_that_of_training(base: str, run, monkeypatch: pytest.MonkeyPatch):
    from tsugiki.dtypes import preferred_compute_dtype

    seen = served(monkeypatch, lambda engine, _access: str(engine.model.dtype))
    expected = {"bf16": "torch.bfloat16", "fp16": "torch.float16", "fp32": "torch.float32"}
    for flags, dtype in (((), preferred_compute_dtype()), (("--dtype", "fp32"), "fp32")):
        assert run("serve", "--model", base, "--port", "0", *flags)[0] == 0
        assert seen.pop() == expected[dtype]


@contextmanager
def serving(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """Start a server; yields its process, its address and the line that it has printed."""
    base = save_tiny(tmp_path / "base", n_positions=4096)
    options = ("--port", "0", "--lang", "en", "--stop-timeout", "0")
    command = [sys.executable, "-m", "tsugiki", "serve", "--model", base, *options]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            yield process, line.split(" at ")[1].split("/v1")[0], line
        finally:
            process.kill()


@pytest.mark.slow
def test_the_printed_address_of_the_page_has_the_language_of_the_flag(tmp_path: Path):
    with serving(tmp_path) as (_process, url, line):
        assert f"{url}/?lang=en " in line


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_stream_with_an_error_and_then_the_server(ending: signal.Signals, tmp_path: Path):
    body = {"model": "base", "prompt": "secret words", "stream": True, "max_tokens": 4000, "ignore_eos": True}
    with serving(tmp_path) as (process, url, _line):
        with httpx2.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(ending)
            *_chunks, error, _empty, done, _end = lines
        out, err = process.communicate(timeout=60)
    assert '"code":"stopping"' in error
    assert done == "data: [DONE]"
    assert (process.returncode, out, err) == (0, "stopped\n", ""), "no prompt is printed"
