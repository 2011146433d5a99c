"""Errors in the format of OpenAI's API: a status and a JSON body."""

from typing import Any

from tsugiki.errors import TsugikiError
from tsugiki.generation.request import EngineStopped, QueueFull, WaitedTooLong
from tsugiki.language import _

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class ApiError(Exception):
    """An answer with an error status. For 429 and 503, a header states when the client may try again."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, retry_after: int = 5
    ) -> None:
        """Create it.

        Args:
            status: the HTTP status.
            message: what is wrong and what to do.
            param: the field of the request that is wrong.
            code: the kind of error, for programs.
            retry_after: seconds after which the client may try again after 429 or 503.
        """
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
    return ApiError(500, _("unexpected {kind}; the server's log shows it").format(kind=type(error).__name__))
