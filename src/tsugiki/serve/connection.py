"""Limits of connections: how long they may wait, and how many a client may open.

uvicorn limits the number of connections and the time between two requests. Without more, connections on which no whole
request arrives would stay until nobody else is answered.
"""

import asyncio
from ipaddress import ip_address

from uvicorn.protocols.http.h11_impl import H11Protocol

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
            if waiting:  # first those that never sent a request, then those that are kept for another one
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

    None: no limit. It is for this machine's own addresses, because all that a proxy passes on comes from there.
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
