"""`tsugiki serve`: what is refused before it starts, and a server that SIGTERM ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

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
        (("--adapter", "a=empty"), "empty"),
        (("--host", "192.0.2.1", "--api-key", "k"), "192.0.2.1"),
    ):
        status, out, err = run("serve", "--model", base, "--port", "0", *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1), err
        assert said in err


def test_the_key_leaves_the_environment(base: str, run, monkeypatch: pytest.MonkeyPatch):
    from tsugiki.serve import server

    def serve(*_given: object) -> None:
        settings = next(one for one in _given if isinstance(one, server.ServerSettings))
        seen.append((settings.api_key, "TSUGIKI_API_KEY" in os.environ))

    seen: list[tuple[str | None, bool]] = []
    monkeypatch.setattr(server, "serve", serve)
    for flags, key in (((), "of the environment"), (("--api-key", "given"), "given")):
        monkeypatch.setenv("TSUGIKI_API_KEY", "of the environment")
        assert run("serve", "--model", base, "--port", "0", *flags)[0] == 0
        assert seen.pop() == (key, False), "processes for previews, runs and chat templates must not get it"


@pytest.mark.slow
def test_sigterm_ends_a_server(tmp_path: Path):
    base = save_tiny(tmp_path / "base")
    command = [sys.executable, "-m", "tsugiki", "serve", "--model", base, "--port", "0", "--lang", "en"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            url = line.split(" at ")[1].split("/v1")[0]
            assert f"{url}/?lang=en " in line, "the page has the language of the flag"
            body = {"model": "base", "prompt": "secret words", "max_tokens": 4}
            assert httpx2.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 200
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out) == (0, "stopped\n")
    assert "secret" not in line + err
