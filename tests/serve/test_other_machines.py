"""The examples of the guide for other machines, by real OpenSSH and nginx."""

import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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
            for _turn in range(600):
                with suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                time.sleep(0.05)
            else:
                process.kill()
                pytest.fail(f"{command[0]}: {process.communicate()[1]}")
            yield
        finally:
            process.kill()


def replaced(example: str, by: dict[str, str]) -> str:
    """An example of the guide with other addresses."""
    for before, after in by.items():
        assert before in example
        example = example.replace(before, after)
    return example


def check_way(client: Any, own: dict[str, str]) -> None:
    """Check that a server answers on the way of a client, whose own pages send these headers, and no others."""
    token = re.findall(r'name="page-token" content="([\w-]+)"', client.get("/", headers=own).text)[0]
    assert client.get("/v1/models", headers=own).json()["data"][0]["id"] == "base"
    for headers, status in (({**own, "X-Page-Token": token}, 404), (own, 403)):
        rename = {"name": "nobody", "to": "x"}
        assert client.post("/page/api/rename-adapter", json=rename, headers=headers).status_code == status
    with client.stream("POST", "/v1/completions", json=ASK, headers=own) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert (len(lines) > 5, lines[-1]) == (True, "data: [DONE]")
    for origin in ("https://evil.example", f"https://{NAME}.evil.example"):
        headers = {**own, "Origin": origin}
        assert client.post("/v1/completions", json=ASK, headers=headers).json()["error"]["code"] == "wrong_origin"


def test_nginx_with_tls(served_files: tuple[str, Path], tmp_path: Path):
    key, certificate, port = tmp_path / "key.pem", tmp_path / "certificate.pem", free_port()
    name = ("-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}")
    made = (*["req", "-x509", "-newkey", "rsa:2048", "-nodes"], *name, "-keyout", key, "-out", certificate)
    subprocess.run((program("openssl"), *made), check=True, capture_output=True)
    example = re.findall(r"```nginx\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)[0]
    with start(*served_files, names=[NAME], api_key="secret") as server:
        here = {
            "listen 443": f"listen 127.0.0.1:{port}",
            "/etc/ssl/llm.example.org.pem": str(certificate),
            "/etc/ssl/llm.example.org.key": str(key),
            "http://127.0.0.1:8000": server.url,
        }
        example = replaced(example, here)
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        folders = "".join(f"{kind}_temp_path {tmp_path};" for kind in kinds)
        settings = tmp_path / "nginx.conf"
        http = f"access_log off; {folders} {example}"
        settings.write_text(f"daemon off; pid {tmp_path}/pid; events {{}} http {{ {http} }}")
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
    with start(*served_files) as server:
        way = f"{port}:{server.url.removeprefix('http://')}"
        example = replaced(example, {"9000:127.0.0.1:8000": way, "you@gpu.example": "127.0.0.1"})
        options = ("StrictHostKeyChecking=no", f"UserKnownHostsFile={tmp_path}/known", "ExitOnForwardFailure=yes")
        login = ("-F", "none", "-p", door, "-i", tmp_path / "user", *(part for one in options for part in ("-o", one)))
        with (
            running((program("sshd"), "-D", "-e", "-f", settings), door),
            running((program("ssh"), *login, *example.split()), port),
            httpx2.Client(base_url=f"http://localhost:{port}", timeout=60) as client,
        ):
            check_way(client, {"Origin": f"http://localhost:{port}", "Sec-Fetch-Site": "same-origin"})
