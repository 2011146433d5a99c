"""Requests that are not allowed, malformed or hostile get documented statuses, and the server goes on."""

import asyncio
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.serve.conftest import Running, start
from tsugiki.errors import TsugikiError

pytest.importorskip("starlette")
from starlette.datastructures import Headers

from tsugiki.serve import MAX_BODY, Access, ApiError, Guard, check, check_access, check_hosts, check_origins, listen

COMPLETIONS = "/v1/completions"
ASK = {"model": "base", "prompt": "a", "max_tokens": 1}
JSON = {"Content-Type": "application/json"}


TOKEN, RENAME = "the token of the page", "/page/api/rename-adapter"
SITE = "https://example.org"
OWN = Access("127.0.0.1", None)
PROXY = Access("127.0.0.1", None, names=frozenset(["example.org"]))
OPEN = Access("127.0.0.1", None, origins=frozenset([SITE]))
KEY = Access("0.0.0.0", "kéy")
PAGE = {"origin": SITE, "sec-fetch-site": "same-origin"}
"""What the page sends that a browser has from the proxy."""
CROSS = {"origin": SITE, "sec-fetch-site": "cross-site"}


@pytest.mark.parametrize(
    ("access", "path", "headers", "status"),
    [
        (OWN, COMPLETIONS, {}, 200),
        (OWN, COMPLETIONS, {"host": "[::1]:8000"}, 200),
        (OWN, COMPLETIONS, {"host": "localhost:9000", "origin": "http://localhost:9000"}, 200),  # a tunnel
        (OWN, COMPLETIONS, {"host": "evil.example:8000"}, 400),
        (OWN, COMPLETIONS, {"host": "localhost.evil.example:8000"}, 400),
        (OWN, COMPLETIONS, {"host": "localhost:8000@evil.example"}, 400),
        (OWN, COMPLETIONS, {"host": ""}, 400),
        (OWN, COMPLETIONS, {"origin": "http://127.0.0.1:8000"}, 200),
        (OWN, COMPLETIONS, {"origin": "http://127.0.0.1:3000"}, 403),  # the page of another program on this machine
        (OWN, COMPLETIONS, {"origin": "null"}, 403),
        (OWN, COMPLETIONS, {"sec-fetch-site": "cross-site"}, 403),
        (OWN, COMPLETIONS, {"content-type": "text/plain"}, 415),
        (OWN, COMPLETIONS, {"content-type": "application/json; charset=utf-8"}, 200),
        (OPEN, COMPLETIONS, CROSS, 200),
        (OPEN, COMPLETIONS, {**CROSS, "origin": "https://example.com"}, 403),
        (OPEN, "/version", CROSS, 403),
        (OPEN, "/", CROSS, 403),
        *((PROXY, COMPLETIONS, {**PAGE, "host": host}, 200) for host in ("example.org", "example.org:8443")),
        (PROXY, COMPLETIONS, PAGE, 200),  # a proxy that writes its own header Host
        (PROXY, RENAME, {**PAGE, "x-page-token": TOKEN}, 200),
        (PROXY, RENAME, PAGE, 403),
        (PROXY, COMPLETIONS, {"origin": "https://example.org:8443"}, 403),
        (PROXY, COMPLETIONS, {"origin": "https://a.example.org"}, 403),
        (PROXY, COMPLETIONS, {**PAGE, "sec-fetch-site": "same-site", "host": "example.org"}, 403),
        (KEY, COMPLETIONS, {"host": "any", "authorization": "Bearer kéy"}, 200),
        *(
            (KEY, COMPLETIONS, {"authorization": wrong}, 401)
            for wrong in ("", "Bearer wrong", "Basic a", "Bearer \xff")
        ),
        (KEY, "/health", {"host": "any"}, 200),
    ],
)
def test_headers(access: Access, path: str, headers: dict[str, str], status: int):
    given = {"host": "127.0.0.1:8000", "content-type": "application/json", **headers}
    raw = Headers(raw=[(name.encode(), value.encode("latin-1")) for name, value in given.items()])
    found = 200
    try:
        check(access, "POST", path, raw, page_token=TOKEN)
    except ApiError as error:
        found = error.status
    assert found == status


def test_an_unknown_name_is_refused_with_what_to_do(server: Running):
    refused = httpx2.post(server.url + COMPLETIONS, json=ASK, headers={"Host": "gpu.example"})
    assert refused.status_code == 400
    assert "--allow-host gpu.example" in refused.json()["error"]["message"]
    assert not {"server", "access-control-allow-origin"} & refused.headers.keys()
    assert "date" in refused.headers


def test_other_sites_that_are_allowed(served_files: tuple[str, Path]):
    with start(*served_files, origins=[SITE]) as server:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        before = httpx2.options(server.url + COMPLETIONS, headers={"Origin": SITE, **asked})
        answer = httpx2.post(server.url + COMPLETIONS, json=ASK, headers=CROSS)
        for one in (before, answer):
            assert (one.status_code, one.headers["access-control-allow-origin"]) == (200, SITE)


def test_names_and_origins_are_written_as_browsers_do():
    assert check_origins(["http://a:1", SITE]) == {"http://a:1", SITE}
    assert check_hosts(["Example.org:8443", "[::1]"]) == {"example.org:8443", "[::1]"}
    for wrong in ("*", "null", "example.org", "https://example.org/", "file:///a", ""):
        with pytest.raises(TsugikiError, match="origin"):
            check_origins([wrong])
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
    wrong = (b"", b"[]", b'{"model": NaN}', b'{"a":' * 3000, b'{"prompt":"\\ud800","model":"base"}')
    for body in (b" " * (MAX_BODY + 1), *wrong):
        answer = httpx2.post(server.url + COMPLETIONS, content=body, headers=JSON)
        assert answer.status_code == (400 if body in wrong else 413)
        assert answer.json()["error"]["message"]
    assert httpx2.put(server.url + COMPLETIONS).status_code == 405
    assert (server.engine.running, server.engine.waiting) == (0, 0)


def test_bytes_that_are_no_http(server: Running):
    host, port = server.url.removeprefix("http://").split(":")
    get, post = b"GET / HTTP/1.1\r\n", b"POST /v1/completions HTTP/1.1\r\n\r\n"
    for sent in (b"\x16\x03\x01" * 50, get + b"A: b\r\n" * 50000, post):
        with socket.create_connection((host, int(port)), timeout=30) as connection, suppress(ConnectionError):
            connection.sendall(sent)
            assert connection.recv(100).split(b" ")[1] in (b"400", b"431")
    assert httpx2.get(server.url + "/health").status_code == 200


def test_a_request_that_runs_when_the_server_ends_has_an_answer():
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise asyncio.CancelledError

    async def send(message: Any) -> None:
        sent.append(message)

    sent: list[Any] = []
    headers = [(b"host", b"127.0.0.1:8000")]
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": headers}
    asyncio.run(Guard(app, Access("127.0.0.1", None), (), "token")(scope, None, send))
    assert sent[0]["status"] == 503
