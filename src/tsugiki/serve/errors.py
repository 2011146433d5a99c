"""Errors in the format of OpenAI's API, a status and a JSON body; and clients that disconnect before their answer."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from tsugiki.errors import TsugikiError
from tsugiki.generation.request import EngineStopped, QueueFull, WaitedTooLong
from tsugiki.language import _

Result = TypeVar("Result")

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class ClientDisconnected(Exception):
    """The client has disconnected."""


class ApiError(Exception):
    """An answer with an error status. For 429 and 503, a header states when the client may try again."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, retry_after: int = 5
    ) -> None:
        """Create it; `param` is the wrong field of the request, `code` the kind of error, `retry_after` in seconds."""
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer."""
        return {"Retry-After": str(self.retry_after)} if self.status in (429, 503) else {}


def invalid(message: str, param: str | None = None) -> ApiError:
    """Return the answer to a request with a wrong value; `param` is its field."""
    return ApiError(400, message, param, "invalid_value")


def as_api_error(error: BaseException) -> ApiError:
    """Return the answer to a request in which an exception was raised."""
    match error:
        case ApiError():
            return error
        case QueueFull():
            return ApiError(429, str(error), code="queue_full", retry_after=1)
        case WaitedTooLong():
            return ApiError(503, str(error), code="waited_too_long")
        case EngineStopped():
            return ApiError(503, str(error), code="stopping")
        case TsugikiError():
            return ApiError(400, str(error))
    return ApiError(500, _("unexpected {kind}; the server's log shows it", kind=type(error).__name__))


async def wait_for_disconnect(request: Request) -> None:
    """Wait until the client of a request disconnects; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of a coroutine, which is cancelled if the client disconnects first."""
    working, watching = asyncio.create_task(work), asyncio.create_task(wait_for_disconnect(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnected
        return working.result()
    finally:
        watching.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working})
