"""Checks of a request before it is processed.

Pages of other sites can make a browser send requests to this machine. They are refused by the headers `Host` (against
DNS rebinding: a foreign name that resolves to 127.0.0.1), `Origin` and `Sec-Fetch-Site`, and because bodies must be
`application/json`, which a browser sends across sites only after a preflight request. Answers have CORS headers only
for origins that the user allows. Requests of the server's own page that change something also need the page's token.
"""

import asyncio
import hmac
from collections.abc import Collection, Container
from dataclasses import dataclass
from email.utils import formatdate
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tsugiki.errors import TsugikiError
from tsugiki.language import LANGUAGES, _, language, speaking
from tsugiki.serve.errors import ApiError

_LOCAL = ("127.0.0.1", "localhost", "[::1]")
_ANY_ADDRESS = ("0.0.0.0", "::", "[::]")
HEALTH = "/health"
API = "/v1/"
PAGE_API = "/page/api/"


@dataclass(frozen=True)
class Access:
    """Who may use the server."""

    host: str
    port: int
    api_key: str | None
    """Without one, no key is needed."""
    origins: frozenset[str] = frozenset()
    """Other sites whose pages may use the addresses below `API`, such as `https://example.org`."""

    @property
    def hosts(self) -> frozenset[str] | None:
        """The allowed values of `Host`; None: all, because the server listens at all addresses of the machine."""
        if self.host in _ANY_ADDRESS:
            return None
        own = f"[{self.host}]" if ":" in self.host else self.host
        names = {*_LOCAL, own.lower()}
        return frozenset({f"{name}:{self.port}" for name in names} | (names if self.port == 80 else set()))


class Guard:
    """ASGI middleware that refuses requests that are not allowed, and sets the language of the answers."""

    def __init__(self, app: ASGIApp, access: Access, public: Container[str], page_token: str) -> None:
        """Create it; `public` and `page_token` are as in `check`."""
        self.app, self.access, self.public, self.page_token = app, access, public, page_token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request as an ASGI application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        method, path, headers = scope["method"], scope["path"], Headers(scope=scope)
        begun = False

        async def send_dated(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message = {**message, "headers": [*message["headers"], (b"date", formatdate(usegmt=True).encode())]}
            await send(message)

        accepted = headers.get("accept-language")
        with speaking(accepted if accepted in LANGUAGES else language()):
            try:
                check(self.access, method, path, headers, self.public, self.page_token)
            except ApiError as error:
                await JSONResponse(error.body, error.status, error.headers)(scope, receive, send_dated)
                return
            try:
                await self.app(scope, receive, send_dated)
            except asyncio.CancelledError:  # the server is stopping, and the time for running requests is over
                if not begun:
                    late = ApiError(503, _("the server is stopping"), code="stopping")
                    await JSONResponse(late.body, late.status, late.headers)(scope, receive, send_dated)


def check(
    access: Access,
    method: str,
    path: str,
    headers: Headers,
    public: Container[str] = (HEALTH,),
    page_token: str = "",
) -> None:
    """Check a request by its headers.

    The paths in `public` need no key, and may be opened from another site. The page sends `page_token` with requests
    that change something; only a page that this server has sent knows it. Starlette's TrustedHostMiddleware is not
    used for `Host`, because its answers are not in OpenAI's format and name no code, and its CORSMiddleware only adds
    headers: it refuses no request.
    """
    host = headers.get("host", "").lower()
    if access.hosts is not None and host not in access.hosts:
        raise ApiError(400, _("the Host header names another server"), code="wrong_host")
    origin = headers.get("origin")
    foreign = origin is not None and urlsplit(origin).netloc.lower() != host
    if not (method == "GET" and path in public):  # a link on another site may lead to the page
        foreign = foreign or headers.get("sec-fetch-site") in ("cross-site", "same-site")
    if foreign and not (origin in access.origins and path.startswith(API)):
        raise ApiError(403, _("requests from pages of other sites are not allowed"), code="wrong_origin")
    if access.api_key is not None and path not in public:
        scheme, _space, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), access.api_key.encode()):
            message = _("the API key is missing or wrong; send it as Authorization: Bearer KEY")
            raise ApiError(401, message, code="invalid_api_key")
    if method == "POST" and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, _("the body must be application/json"), code="wrong_content_type")
    changes_for_page = path.startswith(PAGE_API) and method not in ("GET", "HEAD")
    if changes_for_page and not hmac.compare_digest(headers.get("x-page-token", "").encode(), page_token.encode()):
        raise ApiError(403, _("the page is older than the server; load it again"), code="wrong_page_token")


def check_origins(origins: Collection[str]) -> frozenset[str]:
    """Return the origins that the user allows, as browsers write them."""
    for origin in origins:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.hostname or origin != f"{parts.scheme}://{parts.netloc}":
            message = _("{origin!r} is no origin; write it as browsers do, such as https://example.org")
            raise TsugikiError(message.format(origin=origin))
    return frozenset(origin.lower() for origin in origins)
