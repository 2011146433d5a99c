"""Limits of connections, by raw sockets to a server with a small application of its own."""

import asyncio
import contextlib
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("uvicorn")
from tsugiki.serve import client_of, server

LIMIT = 50
SECONDS = 0.5
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


async def application(scope: Any, receive: Any, send: Any) -> None:
    """A short answer; `/stream`: longer than the limit of time; `/large`: more than the buffers of two sockets."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    longer = {"/stream": (8, SECONDS / 4, b"part"), "/large": (400, 0, b"x" * 65536)}
    count, pause, part = longer.get(scope["path"], (0, 0, b""))
    for _ in range(count):
        await send({"type": "http.response.body", "body": part, "more_body": True})
        await asyncio.sleep(pause)
    await send({"type": "http.response.body", "body": b"end"})


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(server, "REQUEST_SECONDS", SECONDS)
    monkeypatch.setattr(server, "UNREAD_SECONDS", SECONDS)
    monkeypatch.setattr(server, "CONNECTIONS", LIMIT)
    listening, ready = server.listen("127.0.0.1", 0), threading.Event()
    served = server.Server(application, 1, ready.set)
    thread = threading.Thread(target=served.run, kwargs={"sockets": [listening]})
    thread.start()
    assert ready.wait(60)
    served.port = listening.getsockname()[1]
    try:
        yield served
    finally:
        served.end()
        thread.join(60)


@contextlib.contextmanager
def opened(running: Any, count: int = 1, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    """Connections, by which the server must answer or end within 10 s."""
    with contextlib.ExitStack() as stack:
        address = ("127.0.0.1", running.port)
        sockets = [stack.enter_context(socket.create_connection(address, timeout=10)) for _ in range(count)]
        for one in sockets:
            one.sendall(sent)
        yield sockets


def answer(one: socket.socket) -> bytes:
    """One answer on a connection."""
    received = bytearray()
    while not received.endswith(b"end\r\n0\r\n\r\n"):
        part = one.recv(65536)
        assert part, received
        received += part
    return bytes(received)


def rest(one: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    received = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while part := one.recv(65536):
            received += part
    return bytes(received)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n"])
def test_more_silent_connections_than_the_limit(running: Any, sent: bytes):
    with opened(running, LIMIT + 10, sent) as silent:
        with opened(running, sent=GET) as (one,):  # it takes the place of one of them
            assert answer(one).startswith(b"HTTP/1.1 200")
        assert [rest(one) for one in silent] == [b""] * len(silent)


def test_a_slow_head_is_not_waited_for(running: Any):
    with opened(running, sent=GET[:16]) as (one,), contextlib.suppress(ConnectionError):
        for _line in range(80):
            one.sendall(b"x: y\r\n")
            time.sleep(0.1)
        pytest.fail("it waits for ever")


def test_requests_on_one_connection(running: Any):
    with opened(running, sent=GET) as (one,):
        assert answer(one).startswith(b"HTTP/1.1 200")
        time.sleep(1.5 * SECONDS)  # between two requests, uvicorn's longer limit counts
        one.sendall(GET)
        assert answer(one).startswith(b"HTTP/1.1 200")
        one.sendall(GET[:10])
        assert rest(one) == b""


def test_answers_are_not_cut(running: Any):
    with opened(running, 3, GET.replace(b"/ ", b"/stream ")) as streams:
        time.sleep(0.1)
        with opened(running, LIMIT + 10):
            assert [answer(one).count(b"part") for one in streams] == [8, 8, 8]


def test_an_answer_that_nobody_reads(running: Any):
    with opened(running, sent=GET.replace(b"/ ", b"/large ")) as (one,):
        one.recv(1)
        assert running.server_state.connections
        for _turn in range(80):
            time.sleep(0.1)
            if not running.server_state.connections:
                return
        pytest.fail("it waits for ever")


def test_connections_of_one_client(running: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server, "client_of", lambda host: host)
    monkeypatch.setattr(server, "MOST_OF_A_CLIENT", 5)
    with opened(running, 5) as first, opened(running) as (sixth,):
        assert rest(sixth).startswith(b"HTTP/1.1 503")
        first[0].sendall(GET)
        assert answer(first[0]).startswith(b"HTTP/1.1 200")


def test_what_counts_as_a_client():
    assert client_of("127.0.0.1") is client_of("::1") is None
    assert client_of("192.0.2.1") != client_of("192.0.2.2")
    assert client_of("2001:db8::1") == client_of("2001:db8::2:1") != client_of("2001:db8:0:1::1")
    assert client_of("fe80::1%eth0")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_open_files(monkeypatch: pytest.MonkeyPatch):
    import resource

    given: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _kind, new: given.append(new))
    for most, connections, files in ((20000, 1024, 2048), (600, 300, 600)):
        monkeypatch.setattr(resource, "getrlimit", lambda _kind, most=most: (256, most))
        assert (server.possible_connections(), given.pop()) == (connections, (files, most))
