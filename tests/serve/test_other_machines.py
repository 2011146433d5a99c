"""The examples of the guide for other machines, by real OpenSSH and nginx."""

import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.serve.conftest import start

SBIN = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
GUIDE = Path(__file__).parents[2] / "docs" / "serving.md"
NAME = "llm.example.org"
ASK = {"model": "poet", "prompt": "a", "max_tokens": 20, "stream": True, "ignore_eos": True}


def program(name: str) -> str:
    path = shutil.which(name, path=SBIN)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@contextmanager
def running(command: Sequence[str | Path], port: int) -> Iterator[None]:
    """Run a program until it listens at a port, and to the end of the block."""
    with subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        process.kill()
                        pytest.fail(f"{command[0]}: {process.communicate()[1]}")
                    time.sleep(0.05)
            yield
        finally:
            process.kill()


def check_way(client: Any, own: dict[str, str]) -> None:
    """Check that a server answers on the way of a client, whose own pages send these headers, and no others."""
    token = re.findall(r'name="page-token" content="([\w-]+)"', client.get("/", headers=own).text)[0]
    assert client.get("/v1/models", headers=own).json()["data"][0]["id"] == "base"
    rename = {"name": "nobody", "to": "x"}
    assert (
        client.post("/page/api/rename-adapter", json=rename, headers={**own, "X-Page-Token": token}).status_code == 404
    )
    assert client.post("/page/api/rename-adapter", json=rename, headers=own).status_code == 403
    with client.stream("POST", "/v1/completions", json=ASK, headers=own) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert (len(lines) > 5, lines[-1]) == (True, "data: [DONE]")
    for origin in ("https://evil.example", f"https://{NAME}.evil.example"):
        headers = {**own, "Origin": origin}
        assert client.post("/v1/completions", json=ASK, headers=headers).json()["error"]["code"] == "wrong_origin"


def test_nginx_with_tls(served_files: tuple[str, Path], tmp_path: Path):
    key, certificate, port = tmp_path / "key.pem", tmp_path / "certificate.pem", free_port()
    name = ("-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}")
    made = (
        program("openssl"),
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        *name,
        "-keyout",
        key,
        "-out",
        certificate,
    )
    subprocess.run(made, check=True, capture_output=True)
    example = re.findall(r"```nginx\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)[0]
    for server in start(*served_files, names=[NAME], api_key="secret"):
        for before, after in (
            ("listen 443", f"listen 127.0.0.1:{port}"),
            ("/etc/ssl/llm.example.org.pem", str(certificate)),
            ("/etc/ssl/llm.example.org.key", str(key)),
            ("http://127.0.0.1:8000", server.url),
        ):
            assert before in example
            example = example.replace(before, after)
        folders = "".join(
            f"{kind}_temp_path {tmp_path};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        settings = tmp_path / "nginx.conf"
        settings.write_text(
            f"daemon off; pid {tmp_path}/pid; events {{}} http {{ access_log off; {folders} {example} }}"
        )
        with running((program("nginx"), "-p", tmp_path, "-e", tmp_path / "log", "-c", settings), port):
            options: dict[str, Any] = {
                "verify": ssl.create_default_context(cafile=certificate),
                "event_hooks": {"request": [lambda request: request.extensions.update(sni_hostname=NAME)]},
                "headers": {"Host": NAME, "Authorization": "Bearer secret"},
            }
            with httpx2.Client(base_url=f"https://127.0.0.1:{port}", timeout=60, **options) as client:
                check_way(client, {"Origin": f"https://{NAME}", "Sec-Fetch-Site": "same-origin"})
                assert client.get("/v1/models", headers={"Authorization": ""}).status_code == 401


def test_ssh_tunnel_from_another_port(served_files: tuple[str, Path], tmp_path: Path):
    keygen, door, port = program("ssh-keygen"), free_port(), free_port()
    for name in ("host", "user"):
        subprocess.run((keygen, "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name), check=True)
    settings = tmp_path / "sshd_config"
    settings.write_text(
        f"Port {door}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/user.pub\n"
        f"PidFile {tmp_path}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
    )
    privileges = Path("/run/sshd")  # OpenSSH wants this empty folder if it is started by root
    if os.getuid() == 0 and not privileges.exists():
        privileges.mkdir(mode=0o755)
    example = re.findall(r"^ssh (.*?) +#", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)[0]
    for server in start(*served_files):
        for before, after in (
            ("9000:127.0.0.1:8000", f"{port}:{server.url.removeprefix('http://')}"),
            ("you@gpu.example", "127.0.0.1"),
        ):
            assert before in example
            example = example.replace(before, after)
        options = ("StrictHostKeyChecking=no", f"UserKnownHostsFile={tmp_path}/known", "ExitOnForwardFailure=yes")
        login = ("-F", "none", "-p", door, "-i", tmp_path / "user", *(part for one in options for part in ("-o", one)))
        with (
            running((program("sshd"), "-D", "-e", "-f", settings), door),
            running((program("ssh"), *login, *example.split()), port),
            httpx2.Client(base_url=f"http://localhost:{port}", timeout=60) as client,
        ):
            check_way(client, {"Origin": f"http://localhost:{port}", "Sec-Fetch-Site": "same-origin"})
