"""Run the server until it is ended by a signal."""

import asyncio
import errno
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp

from tsugiki.errors import TsugikiError
from tsugiki.generation.engine import Engine
from tsugiki.generation.request import Limits
from tsugiki.language import _
from tsugiki.serve.connection import Connection, possible_connections
from tsugiki.serve.errors import ApiError
from tsugiki.serve.http_app import new_app
from tsugiki.serve.security import Access
from tsugiki.serve.served_adapters import ServedAdapters
from tsugiki.serve.train_view import Workspace, workspace_routes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_WAITING_CONNECTIONS = 256
_KEEP_ALIVE = 75  # seconds; longer than common clients keep an unused connection, so that they are the ones to close it
_MAX_HEADERS = 32 << 10  # bytes


@dataclass(frozen=True)
class ServerSettings:
    """How a server is run."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free port."""
    api_key: str | None = None
    limits: Limits = field(default_factory=Limits)
    max_loaded: int = 32
    adapter_bytes: int = 2_000_000_000
    """Largest size of the adapters in memory."""
    seconds: float = 600.0
    """Seconds that a request may take."""
    stop_seconds: int = 30
    """Seconds that running requests may go on after SIGTERM."""
    allow_lora_updates: bool = False
    allow_base_mismatch: bool = False
    origins: frozenset[str] = frozenset()
    """Other sites whose pages may use the API; the result of `check_origins`."""
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Adapters by name, besides those of the library; they are loaded at the start."""
    workspace: Workspace | None = None
    """Where the page finds runs and texts, and starts runs; None: nowhere."""


def check_access(host: str, api_key: str | None) -> None:
    """Check that there is a key if other machines can reach the address.

    Raises:
        TsugikiError: there is no key, or it is not printable ASCII text.
    """
    if api_key is not None and (not api_key.strip() or not api_key.isascii() or not api_key.isprintable()):
        raise TsugikiError(_("the API key must be printable ASCII characters, and at least one"))
    if api_key is None and host not in _LOOPBACK:
        raise TsugikiError(
            _("other machines can reach {host}; give a key by --api-key-file or TSUGIKI_API_KEY").format(host=host)
        )


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address.

    Raises:
        TsugikiError: the port is in use, or the address is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_WAITING_CONNECTIONS)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise TsugikiError(_("port {port} is in use; choose another one by --port").format(port=port)) from error
        raise TsugikiError(
            _("cannot listen at {host}:{port}: {reason}").format(host=host, port=port, reason=error.strerror or error)
        ) from error


def serve(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    name: str,
    library: Path,
    settings: ServerSettings,
    listening: socket.socket,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve a model and its adapters until SIGINT or SIGTERM.

    Running requests then go on for `stop_seconds` at most.

    Args:
        model: a causal language model that is not grafted.
        tokenizer: its tokenizer.
        name: the name that selects the base.
        library: the library's folder.
        settings: the settings of the server.
        listening: the result of `listen`; it is closed.
        ready: called with the server's address once it answers.

    Raises:
        TsugikiError: the model cannot be served.
    """
    host, port = settings.host, listening.getsockname()[1]
    with listening:
        engine = Engine(model, settings.limits)
        engine.start()
        try:
            adapters = ServedAdapters(
                engine,
                tokenizer,
                name,
                settings.folders,
                library,
                settings.max_loaded,
                settings.allow_base_mismatch,
                settings.adapter_bytes,
            )
            access = Access(host, port, settings.api_key, settings.origins)
            views = workspace_routes(settings.workspace) if settings.workspace else ()
            app = new_app(engine, adapters, access, settings.seconds, settings.allow_lora_updates, views)
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            asyncio.run(_run(Server(app, settings.stop_seconds, lambda: ready(url)), adapters, listening))
        finally:
            engine.stop()


async def _run(server: "Server", adapters: ServedAdapters, listening: socket.socket) -> None:
    try:
        for name in adapters.folders:
            adapters.release(await adapters.acquire(name))
    except ApiError as error:
        raise TsugikiError(error.message) from error
    await server.serve(sockets=[listening])


class Server(uvicorn.Server):
    """uvicorn with limits and without logs of requests, which calls `ready` at its start and sleeps while it is idle.

    uvicorn's own main loop wakes up ten times a second, to check whether it should end and to update the header Date.
    """

    def __init__(self, app: ASGIApp, stop_seconds: int, ready: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            limit_concurrency=possible_connections(),
            h11_max_incomplete_event_size=_MAX_HEADERS,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=stop_seconds,
        )
        super().__init__(config)
        self.ready = ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept requests."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.ready()

    async def main_loop(self) -> None:
        """Wait for `end`."""
        if not self.should_exit:
            await self._ending.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        super().handle_exit(sig, frame)
        self.end()

    def end(self) -> None:
        """End the server. Any thread may call this."""
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._ending.set)
