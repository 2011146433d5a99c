"""Checks of a request before it is processed.

Pages of other sites can make a browser send requests to this machine. They are refused by the headers `Host` (against
DNS rebinding: a foreign name that resolves to 127.0.0.1), `Origin` and `Sec-Fetch-Site`, and because bodies must be
`application/json`, which a browser sends across sites only after a preflight request. A file is sent as a form, and
`cancel`, `pause` and `resume` have no body; a browser sends these without one, so `Origin` and `Sec-Fetch-Site` alone
refuse them. Answers have CORS headers only for origins that the user allows. A POST below `PAGE_API` also needs the
page's token; files and runs below `API` do not, because other clients use them as the page does.

A browser can reach the server by another port (a tunnel) or another name (a reverse proxy). Any port is allowed,
because the name alone shows DNS rebinding; the names of proxies are those that the user gives (`Access.names`).
"""

import asyncio
import hmac
import re
import uuid
from collections.abc import Collection, Container
from dataclasses import dataclass
from email.utils import formatdate
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tsugiki.errors import TsugikiError
from tsugiki.generation.request import engine_stopped
from tsugiki.language import LANGUAGES, _, language, speaking
from tsugiki.serve.errors import ApiError, as_api_error

LOCAL = ("127.0.0.1", "localhost", "::1")
_ANY_ADDRESS = ("0.0.0.0", "::", "[::]")
_LONGEST_SHOWN = 100  # characters of a header in an error
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_REQUEST_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
REQUEST_ID = "x-request-id"
HEALTH = "/health"
API = "/v1/"
FILES = "/v1/files"
PAGE_API = "/page/api/"


@dataclass(frozen=True)
class Access:
    """Who may use the server."""

    host: str
    """The address at which the server listens."""
    api_key: str | None
    """Without one, no key is needed."""
    origins: frozenset[str] = frozenset()
    """Other sites whose pages may use the addresses below `API`, such as `https://example.org`."""
    names: frozenset[str] = frozenset()
    """Other names of the server, as browsers show them: `example.org`, or `example.org:8443` with another port."""

    def is_own_host(self, host: str) -> bool:
        """Return whether a value of the header `Host` names this server, with any port."""
        if self.host in _ANY_ADDRESS:  # there is a key, and the machine's addresses are not known
            return True
        return _host_name(host) in {*LOCAL, self.host.lower(), *map(_host_name, self.names)}

    def is_own_origin(self, origin: str, host: str) -> bool:
        """Return whether a value of the header `Origin` is this server's own page; `host` is the header `Host`."""
        place = origin.partition("://")[2].lower()
        return place != "" and (place == host or place in self.names)


class Guard:
    """ASGI middleware that refuses requests that are not allowed, and sets the language of the answers.

    Every answer has an id, by which a user can find the request again: that of the client if it is a short word.
    """

    def __init__(self, app: ASGIApp, access: Access, public: Container[str], page_token: str) -> None:
        """Create it; `public` and `page_token` are as in `check`."""
        self.app, self.access, self.public, self.page_token = app, access, public, page_token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request as an ASGI application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method, path, headers = scope["method"], scope["path"], Headers(scope=scope)
        begun, given = False, headers.get(REQUEST_ID, "")
        scope[REQUEST_ID] = name = given if _REQUEST_NAME.fullmatch(given) else uuid.uuid4().hex

        async def send_named(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                added = ((b"date", formatdate(usegmt=True).encode()), (REQUEST_ID.encode(), name.encode()))
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        accepted = headers.get("accept-language")
        with speaking(accepted if accepted in LANGUAGES else language(), "x-page-token" in headers):
            try:
                check(self.access, method, path, headers, self.public, self.page_token)
            except ApiError as error:
                await JSONResponse(error.body, error.status, error.headers)(scope, receive, send_named)
                return
            try:
                await self.app(scope, receive, send_named)
            except asyncio.CancelledError:  # the server is stopping, and the time for running requests is over
                if not begun:
                    late = as_api_error(engine_stopped())
                    await JSONResponse(late.body, late.status, late.headers)(scope, receive, send_named)


def check(
    access: Access,
    method: str,
    path: str,
    headers: Headers,
    public: Container[str] = (HEALTH,),
    page_token: str = "",
) -> None:
    """Check a request by its headers.

    The paths in `public` need no key, and may be opened from another site. Requests below `PAGE_API` other than GET and
    HEAD have to carry `page_token`; only a page that this server has sent knows it. Starlette's TrustedHostMiddleware
    is not used for `Host`, because its answers are not in OpenAI's format and do not say what to do, and its
    CORSMiddleware only adds headers: it refuses no request.
    """
    host = headers.get("host", "").lower()
    if not access.is_own_host(host):
        message = _(
            "{host!r} is no known name of this server; if it is one, start the server with --allow-host {host}",
            host=host[:_LONGEST_SHOWN],
        )
        raise ApiError(400, message, code="wrong_host")
    origin = headers.get("origin")
    foreign = origin is not None and not access.is_own_origin(origin, host)
    if not (method == "GET" and path in public):  # a link on another site may lead to the page
        foreign = foreign or headers.get("sec-fetch-site") in ("cross-site", "same-site")
    if foreign and not (origin in access.origins and path.startswith(API)):
        message = _(
            "requests from pages of other sites are not allowed; start the server with --allow-host NAME if this is "
            "its own page behind a proxy, or with --allow-origin to let another site use /v1/"
        )
        raise ApiError(403, message, code="wrong_origin")
    if access.api_key is not None and path not in public:
        scheme, _space, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), access.api_key.encode()):
            message = _("the API key is missing or wrong; send it as Authorization: Bearer KEY")
            raise ApiError(401, message, code="invalid_api_key")
    wanted = "multipart/form-data" if path == FILES else "application/json"
    has_body = (
        not {"content-type", "transfer-encoding"}.isdisjoint(headers) or headers.get("content-length", "0") != "0"
    )
    given = headers.get("content-type", "").partition(";")[0].strip().lower()
    if method == "POST" and has_body and given != wanted:
        raise ApiError(415, _("the body must be {kind}", kind=wanted), code="wrong_content_type")
    changes_for_page = path.startswith(PAGE_API) and method not in ("GET", "HEAD")
    if changes_for_page and not hmac.compare_digest(headers.get("x-page-token", "").encode(), page_token.encode()):
        raise ApiError(403, _("the page is older than the server; load it again"), code="wrong_page_token")


def check_origins(origins: Collection[str]) -> frozenset[str]:
    """Return the origins that the user allows, as browsers write them."""
    for origin in origins:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.hostname or origin != f"{parts.scheme}://{parts.netloc}":
            raise TsugikiError(
                "{origin!r} is no origin; write it as browsers do, such as https://example.org", origin=origin
            )
    return frozenset(origin.lower() for origin in origins)


def check_hosts(names: Collection[str]) -> frozenset[str]:
    """Return the names of the server that the user allows, in small letters."""
    for name in names:
        if not _HOST.fullmatch(name):
            raise TsugikiError(
                "{name!r} is no name of a host; write it as browsers show it, such as example.org or example.org:8443",
                name=name,
            )
    return frozenset(name.lower() for name in names)


def _host_name(host: str) -> str | None:
    """Return the name or address in a value of `Host`, without its port; None if it is not valid."""
    found = _HOST.fullmatch(host)
    return found[1].strip("[]").lower() if found else None
