"""Requests that are not allowed, malformed or hostile get documented statuses, and the server goes on."""

import asyncio
import json
import random
import socket
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.serve.conftest import Running, start
from tsugiki.errors import TsugikiError

pytest.importorskip("starlette")
from tsugiki.serve import MAX_BODY, Access, Guard, check_access, check_origins, listen

DOCUMENTED = {200, 400, 401, 403, 404, 405, 413, 415, 429, 503}
COMPLETIONS = "/v1/completions"
ASK = {"model": "base", "prompt": "a", "max_tokens": 1}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:PORT"}, 200),
        ({"Host": "[::1]:PORT"}, 200),
        ({"Host": "evil.example"}, 400),
        ({"Host": "evil.example:PORT"}, 400),
        ({"Host": "127.0.0.1:1"}, 400),
        ({"Origin": "http://127.0.0.1:PORT"}, 200),
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
    access = Access("0.0.0.0", 8000, "kéy")
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
        for origin, path in (("https://example.com", "/v1/models"), (site, "/"), (site, "/metrics")):
            assert httpx2.get(server.url + path, headers={**sent, "Origin": origin}).status_code == 403
    assert check_origins(["http://a:1", site]) == {"http://a:1", site}
    for wrong in ("*", "null", "example.org", "https://example.org/", "file:///a", ""):
        with pytest.raises(TsugikiError, match="origin"):
            check_origins([wrong])


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


def mutations(generator: random.Random, count: int) -> list[tuple[str, str, bytes]]:
    """Requests as (method, path, body): fields with values of other types and sizes, and bytes that are no JSON."""
    values: list[Any] = [
        None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, -(2**63), 0.5, 1e308, "", "a", "\x00", "a" * 5000, "\ud800",
        "😀", {"999": 1},
        "../../etc/passwd", "base", "歌人", [], [[]], ["a", 1], [0], [-1], [10**6], [[0], [1]], [None], {}, {"a": {}},
        {"0": 100}, {"include_usage": True}, [{"role": "user", "content": "a"}], [{"role": "x", "content": "a"}],
        [{"role": "user", "content": [{"type": "image_url"}]}], [{"role": "user"}],
        [{"role": "assistant", "content": "b"}],
        [{"role": "user", "content": "<|endoftext|>"}], [{"role": "user", "content": ""}], "poet", "turns",
    ]  # fmt: skip
    fields = [
        "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p",
        "n",
        "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "stop", "stream", "stream_options",
        "logprobs", "top_logprobs", "echo", "logit_bias", "ignore_eos", "min_tokens", "suffix", "user", "tools",
        "x" * 99, "chat_template", "chat_template_kwargs", "response_format", "lora_path",
    ]  # fmt: skip
    raw = [
        b"", b"null", b"[]", b"{", b'{"model": NaN}', b"\xff\xfe", b'{"a":' * 3000, b"[" * 100000,
        b'{"model":"base","model":1}',
        b'{"model":"base","prompt":"a","temperature":Infinity}', b'{"prompt":"\\ud800","model":"base"}', b"1" * 5000,
    ]  # fmt: skip
    paths = [COMPLETIONS, "/v1/chat/completions", "/tokenize", "/detokenize"]
    odd = [
        "/",
        "/v1",
        "/v1/models/..%2F..%2Fetc",
        "/v1/models/%00",
        "/v1/models/" + "a" * 500,
        "//health",
        "/v1/completions/",
    ]
    found = [("POST", paths[i % 4], body) for i, body in enumerate(raw)] + [("GET", path, b"") for path in odd]
    found += [(method, path, b"{}") for method in ("PUT", "DELETE", "PATCH", "GET") for path in paths]
    found += [("POST", "/v1/load_lora_adapter", b'{"lora_name": "poet"}')]
    while len(found) < count:
        path = generator.choice(paths)
        start: dict[str, Any] = {"model": generator.choice(["base", "歌人"]), "max_tokens": 2}
        start |= {"prompt": "a"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "a"}]}
        for _ in range(generator.choice([1, 1, 2, 3])):
            start[generator.choice(fields)] = generator.choice(values)
        if "max_tokens" in start and type(start["max_tokens"]) is int:
            start["max_tokens"] = min(start["max_tokens"], 300)
        found.append(("POST", path, json.dumps(start).encode()))
    return found


@pytest.mark.slow
def test_malformed_requests(server: Running):
    tally: dict[int, int] = {}
    with httpx2.Client(base_url=server.url, timeout=60, headers={"Content-Type": "application/json"}) as client:
        for method, path, body in mutations(random.Random(0), 2000):
            answer = client.request(method, path, content=body)
            assert answer.status_code in DOCUMENTED, (method, path, body[:300], answer.text)
            tally[answer.status_code] = tally.get(answer.status_code, 0) + 1
            if answer.status_code >= 400:
                assert answer.json()["error"]["message"], body[:300]
        large = client.post(COMPLETIONS, content=b" " * (MAX_BODY + 1))
        assert large.status_code == 413
        assert client.post(COMPLETIONS, content=json.dumps(ASK)).status_code == 200
        assert client.get("/health").json() == {"status": "ok"}
    assert tally[200] > 20
    assert tally[400] > 500
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

        await Guard(app, Access("127.0.0.1", 8000, None), (), "token")(scope, None, send)
        return sent

    assert asyncio.run(run())[0]["status"] == 503
