"""Requests that are not allowed, malformed or hostile get documented statuses, and the server goes on."""

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.serve.conftest import Running, start
from tsugiki.errors import TsugikiError

pytest.importorskip("starlette")
from tsugiki.serve import MAX_BODY, Access, Guard, check_access, check_hosts, check_origins, listen

COMPLETIONS = "/v1/completions"
ASK = {"model": "base", "prompt": "a", "max_tokens": 1}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:PORT"}, 200),
        ({"Host": "[::1]:PORT"}, 200),
        ({"Host": "localhost:9000", "Origin": "http://localhost:9000"}, 200),  # a tunnel from another port
        ({"Host": "evil.example"}, 400),
        ({"Host": "evil.example:PORT"}, 400),
        ({"Host": "localhost.evil.example:PORT"}, 400),
        ({"Host": "localhost:PORT@evil.example"}, 400),
        ({"Host": ""}, 400),
        ({"Origin": "http://127.0.0.1:PORT"}, 200),
        ({"Origin": "http://127.0.0.1:3000"}, 403),  # the page of another program on this machine
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
    ],
)
def test_headers(server: Running, headers: dict[str, str], status: int):
    port = server.url.rpartition(":")[2]
    headers = {name: value.replace("PORT", port) for name, value in headers.items()}
    answer = httpx2.post(
        server.url + COMPLETIONS, content=json.dumps(ASK), headers={"Content-Type": "application/json", **headers}
    )
    assert answer.status_code == status, answer.text
    assert not any(name.startswith("access-control") for name in answer.headers)
    assert "server" not in answer.headers
    assert "date" in answer.headers


def test_a_key_is_required_everywhere_but_for_health():
    access = Access("0.0.0.0", "kéy")
    from starlette.datastructures import Headers

    from tsugiki.serve import ApiError, check

    check(access, "GET", "/health", Headers({"host": "any"}))
    for value in ("", "Bearer wrong", "Basic a", "Bearer \xff"):
        with pytest.raises(ApiError) as caught:
            check(access, "GET", "/v1/models", Headers({"host": "any", "authorization": value}))
        assert caught.value.status == 401


def test_other_sites_that_are_allowed(served_files: tuple[str, Path]):
    site = "https://example.org"
    for server in start(*served_files, origins=[site]):
        asked = {
            "Origin": site,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        }
        before = httpx2.options(server.url + COMPLETIONS, headers=asked)
        assert before.status_code == 200
        sent = {"Origin": site, "Sec-Fetch-Site": "cross-site"}
        answer = httpx2.post(server.url + COMPLETIONS, json=ASK, headers=sent)
        for one in (before, answer):
            assert one.headers["access-control-allow-origin"] == site
        assert answer.status_code == 200
        for origin, path in (("https://example.com", "/v1/models"), (site, "/"), (site, "/version")):
            assert httpx2.get(server.url + path, headers={**sent, "Origin": origin}).status_code == 403
    assert check_origins(["http://a:1", site]) == {"http://a:1", site}
    for wrong in ("*", "null", "example.org", "https://example.org/", "file:///a", ""):
        with pytest.raises(TsugikiError, match="origin"):
            check_origins([wrong])


def test_behind_a_proxy(served_files: tuple[str, Path]):
    """The proxy has the name example.org; it may keep the header Host, or write its own."""
    page = {"Sec-Fetch-Site": "same-origin", "Origin": "https://example.org"}
    for server in start(*served_files, names=["example.org"]):
        own = server.url.removeprefix("http://")

        def ask(headers: dict[str, str], path: str = COMPLETIONS, body: Any = ASK, url: str = server.url) -> int:
            return httpx2.post(url + path, json=body, headers=headers).status_code

        token = httpx2.get(server.url, headers={"Host": "example.org"}).text.split('name="page-token" content="')[1]
        sent = {**page, "X-Page-Token": token.split('"')[0]}
        for host in ("example.org", "example.org:8443", own):
            assert ask({**page, "Host": host}) == 200
            assert ask({**sent, "Host": host}, "/page/api/rename-adapter", {"name": "nobody", "to": "a"}) == 404
            assert ask({**page, "Host": host}, "/page/api/rename-adapter", {"name": "nobody", "to": "a"}) == 403
        for origin in ("https://example.org:8443", "https://a.example.org", "https://evil.example", "null"):
            assert ask({"Origin": origin, "Host": own}) == 403
        assert ask({**page, "Sec-Fetch-Site": "same-site", "Host": "example.org"}) == 403
        refused = httpx2.post(server.url + COMPLETIONS, json=ASK, headers={"Host": "gpu.example"})
        assert refused.status_code == 400
        assert "--allow-host gpu.example" in refused.json()["error"]["message"]
    assert check_hosts(["Example.org:8443", "[::1]"]) == {"example.org:8443", "[::1]"}
    for wrong in ("*", "", "https://example.org", "example.org/", "a b", "example.org:port"):
        with pytest.raises(TsugikiError, match="host"):
            check_hosts([wrong])


def test_every_answer_has_an_id(server: Running):
    for given, kept in (("abc-1.2_3", True), ("", False), ("a b", False), ("x" * 129, False), ("a\tb", False)):
        answers = [httpx2.get(server.url + path, headers={"X-Request-Id": given}) for path in ("/health", "/nowhere")]
        answers.append(httpx2.post(server.url + COMPLETIONS, headers={"X-Request-Id": given}))  # refused by the guard
        found = [answer.headers.get_list("x-request-id") for answer in answers]
        assert all(len(ids) == 1 for ids in found)
        assert all((ids == [given]) == kept for ids in found)
        assert kept or len({ids[0] for ids in found}) == len(found)


def test_addresses():
    check_access("127.0.0.1", None)
    check_access("0.0.0.0", "key")
    for host, key in (("0.0.0.0", None), ("192.0.2.1", None), ("127.0.0.1", " ")):
        with pytest.raises(TsugikiError, match="key"):
            check_access(host, key)
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TsugikiError, match=str(port)):
            listen("127.0.0.1", port)
    with pytest.raises(TsugikiError, match=r"192\.0\.2\.1"):
        listen("192.0.2.1", 0)


def test_bodies_that_are_too_large_or_no_request(server: Running):
    for body, status in (
        (b" " * (MAX_BODY + 1), 413),
        *(
            (body, 400)
            for body in (b"", b"[]", b'{"model": NaN}', b'{"a":' * 3000, b'{"prompt":"\\ud800","model":"base"}')
        ),
    ):
        answer = httpx2.post(server.url + COMPLETIONS, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == status
        assert answer.json()["error"]["message"]
    assert httpx2.put(server.url + COMPLETIONS).status_code == 405
    assert (server.engine.running, server.engine.waiting) == (0, 0)


def test_bytes_that_are_no_http(server: Running):
    host, port = server.url.removeprefix("http://").split(":")
    for sent in (
        b"\x16\x03\x01" * 50,
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 50000,
        b"POST /v1/completions HTTP/1.1\r\n\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            try:
                connection.sendall(sent)
                assert connection.recv(100).split(b" ")[1] in (b"400", b"431")
            except ConnectionError:
                pass
    assert httpx2.get(server.url + "/health").status_code == 200


def test_a_request_that_runs_when_the_server_ends_has_an_answer():
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise asyncio.CancelledError

    async def run() -> list[Any]:
        sent: list[Any] = []
        headers = [(b"host", b"127.0.0.1:8000")]
        scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": headers}

        async def send(message: Any) -> None:
            sent.append(message)

        await Guard(app, Access("127.0.0.1", None), (), "token")(scope, None, send)
        return sent

    assert asyncio.run(run())[0]["status"] == 503
