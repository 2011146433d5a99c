"""Run the server until it is ended by a signal."""

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from tsugiki.adapters.files import named_base
from tsugiki.adapters.library import adapter_folder, check_name, library_folder
from tsugiki.base.loading import default_device, load_model, load_tokenizer
from tsugiki.data.chat import use_template
from tsugiki.errors import TsugikiError, unreadable
from tsugiki.generation.engine import Engine
from tsugiki.generation.request import Limits
from tsugiki.serve.errors import ApiError
from tsugiki.serve.fine_tuning import workspace_routes
from tsugiki.serve.http_app import new_app
from tsugiki.serve.security import LOCAL, Access, check_hosts, check_origins
from tsugiki.serve.served_adapters import ServedAdapters
from tsugiki.serve.settings import ServerSettings
from tsugiki.serve.train_view import Workspace
from tsugiki.training.score.targets import EvaluationTarget, dtype_of_training

_KEY_VARIABLE = "TSUGIKI_API_KEY"
_GB = 1e9  # bytes
_WAITING_CONNECTIONS = 256
_KEEP_ALIVE = 75  # seconds; longer than common clients keep an unused connection, so that they are the ones to close it
_LAST_SECONDS = 2  # for the last events of streams, before uvicorn cancels what is left
_MAX_HEADERS = 32 << 10  # bytes


def check_access(host: str, api_key: str | None) -> None:
    """Check that there is a key if other machines can reach the address."""
    if api_key is not None and (not api_key.strip() or not api_key.isascii() or not api_key.isprintable()):
        raise TsugikiError("the API key must be printable ASCII characters, and at least one")
    if api_key is None and host not in LOCAL:
        raise TsugikiError(
            "other machines can reach {host}; give a key by --api-key-file or TSUGIKI_API_KEY", host=host
        )


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_WAITING_CONNECTIONS)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise TsugikiError("port {port} is in use; choose another one by --port", port=port) from error
        raise TsugikiError(
            "cannot listen at {host}:{port}: {reason}", host=host, port=port, reason=error.strerror or error
        ) from error


def serve(settings: ServerSettings, ready: Callable[[str, str, str], None]) -> None:
    """Serve a model and its adapters until SIGINT or SIGTERM.

    Running requests then go on for `stop_timeout` at most.

    Args:
        settings: what is served, where and to whom.
        ready: is called with the model's name, its dtype and the server's address once it answers.

    Raises:
        TsugikiError: the address cannot be used, or a setting, the model or an adapter is not as it must be.
    """
    if settings.texts is not None and not settings.texts.is_dir():
        raise TsugikiError("--texts {folder}: there is no such folder", folder=settings.texts)
    key = _key(settings.api_key, settings.api_key_file)
    check_access(settings.host, key)
    access = Access(settings.host, key, check_origins(settings.allow_origin), check_hosts(settings.allow_host))
    model = settings.model or _named_base(settings.adapter)
    name = Path(model).resolve().name if Path(model).exists() else model
    folders = _folders(settings.adapter, name)
    dtype = settings.dtype or dtype_of_training([EvaluationTarget(model, folder) for folder in folders.values()])
    with listen(settings.host, settings.port) as listening:
        base = load_model(model, dtype, trust_remote_code=settings.trust_remote_code).to(default_device())
        tokenizer = load_tokenizer(model, trust_remote_code=settings.trust_remote_code)
        use_template(tokenizer, settings.chat_template)
        engine = Engine(base, _limits(settings))
        adapters = ServedAdapters(
            engine,
            tokenizer,
            name,
            folders,
            library_folder(),
            settings.max_loaded,
            settings.allow_base_mismatch,
            round(settings.adapter_memory * _GB),
        )
        views = workspace_routes(Workspace(model, Path.cwd(), settings.texts or Path(), settings.aozora), adapters)
        host, port = settings.host, listening.getsockname()[1]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        app = new_app(engine, adapters, access, settings.timeout, views)
        server = Server(app, settings.stop_timeout, lambda: ready(name, dtype, url), app.state.end_requests)
        engine.start()
        try:
            asyncio.run(_run(server, adapters, listening))
        finally:
            engine.stop()


def _limits(settings: ServerSettings) -> Limits:
    cache, prefixes = round(settings.cache_memory * _GB), round(settings.prefix_memory * _GB)
    return Limits(settings.max_batch, cache, settings.max_waiting, prefixes, settings.max_wait)


def _key(api_key: str | None, file: Path | None) -> str | None:
    """Return the API key from the flag, the file or the environment; None if there is none.

    It leaves the environment, so that no process that the server starts has it.
    """
    of_environment = os.environ.pop(_KEY_VARIABLE, None)
    if api_key is not None and file is not None:
        raise TsugikiError("pass --api-key or --api-key-file, not both")
    if file is None:
        return of_environment if api_key is None else api_key
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise unreadable(file, error) from error


def _named_base(given: Sequence[str]) -> str:
    """Return the base that the values of --adapter name."""
    folders = [adapter_folder(value.partition("=")[2] or value) for value in given]
    bases = sorted({base for folder in folders if (base := named_base(folder))})
    if len(bases) == 1:
        return bases[0]
    if bases:
        raise TsugikiError("the adapters name several bases: {bases}; pass --model", bases=", ".join(bases))
    raise TsugikiError("no --adapter names a base; pass --model")


def _folders(given: Sequence[str], base: str) -> dict[str, Path]:
    """Return the folders of the adapters that are loaded at the start, by the names that requests use."""
    folders: dict[str, Path] = {}
    for value in given:
        name, separator, path = value.partition("=")
        folder = adapter_folder(path if separator else value)
        called = check_name(name if separator else folder.resolve().name)
        if called == base or called in folders:
            raise TsugikiError(
                "two models would be called {name!r}; pass --adapter NAME=FOLDER with another name", name=called
            )
        folders[called] = folder
    return folders


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

    def __init__(
        self,
        app: ASGIApp,
        stop_seconds: int,
        ready: Callable[[], None],
        end_requests: Callable[[], None] = lambda: None,
    ) -> None:
        """Create it; `end_requests` ends the requests that still run `stop_seconds` after the signal to end."""
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
            timeout_graceful_shutdown=stop_seconds + _LAST_SECONDS,
            log_level="critical",  # errors of the application are logged by it, and answered
        )
        super().__init__(config)
        self.ready, self.stop_seconds, self.end_requests = ready, stop_seconds, end_requests
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

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more requests, and wait for those that run."""
        timer = asyncio.get_running_loop().call_later(self.stop_seconds, self.end_requests)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        super().handle_exit(sig, frame)
        self.end()

    def end(self) -> None:
        """End the server. Any thread may call this."""
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._ending.set)


# Limits of connections ----------------------------------------------------------------------------------


REQUEST_SECONDS = 10.0  # time for the head of a request, from the beginning of the connection or its first byte
UNREAD_SECONDS = 60.0  # time in which a client may read nothing of an answer
MOST_OF_A_CLIENT = 256  # connections
CONNECTIONS = 1024
_OTHER_FILES = 1024  # files that the process may have open besides
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Connection(H11Protocol):
    """A connection with limits.

    - It is closed if the head of a request takes too long, or if the client reads nothing of an answer for too long.
    - If there are as many connections as there may be, a new one takes the place of one that waits for a request.
    - A client has a part of them at most.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        super().connection_made(transport)
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._waits_since = self.loop.time()
        self._client = client_of(self.client[0]) if self.client else None
        self._limit_head()
        others = [one for one in self.connections if isinstance(one, Connection) and one is not self]
        if self._client and sum(one._client == self._client for one in others) >= MOST_OF_A_CLIENT:
            transport.write(_BUSY)
            transport.close()
        elif self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            waiting = [one for one in others if one._waits]
            if waiting:  # those that never sent a request go before those that are kept for another one
                oldest = min(waiting, key=lambda one: (one.cycle is not None, one._waits_since))
                self.connections.discard(oldest)
                oldest.timeout_keep_alive_handler()

    def data_received(self, data: bytes) -> None:
        """Process what the client has sent."""
        super().data_received(data)
        self._limit_head()

    def on_response_complete(self) -> None:
        """End an answer; then uvicorn's limit of time counts until the client sends something."""
        self._waits_since = self.loop.time()
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        """Close it, even if the client has not read the whole answer."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def pause_writing(self) -> None:
        """Wait until the client reads."""
        super().pause_writing()
        self._unread_timer = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on after `pause_writing`."""
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        super().connection_lost(exc)
        for timer in (self._head_timer, self._unread_timer):
            if timer is not None:
                timer.cancel()

    @property
    def _waits(self) -> bool:
        """Whether it waits for a request."""
        return self.cycle is None or self.cycle.response_complete

    def _limit_head(self) -> None:
        """Limit the time for the head of a request; what the client sends meanwhile does not prolong it."""
        if self._waits and self._head_timer is None:
            self._head_timer = self.loop.call_later(REQUEST_SECONDS, self.timeout_keep_alive_handler)
        elif not self._waits and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def client_of(host: str) -> str | None:
    """Return what is counted as one client: an IPv4 address or the network (/64) of an IPv6 address.

    This machine's own addresses have no limit (None), because all that a proxy passes on comes from there.
    """
    address = ip_address(host)
    if address.is_loopback:
        return None
    return host if address.version == 4 else f"{int(address) >> 64:x}"


def possible_connections() -> int:
    """Return how many connections there may be, and let this process open as many files.

    Many systems allow 256 or 1,024 files at first. Where asyncio has none left for a new connection, it does nothing
    else any more than try again.
    """
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = CONNECTIONS + _OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        files = min(files, hard)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return min(CONNECTIONS, files // 2)
