"""The server's web page: its files, and the requests that only the page makes.

The files are in the folder `page` and are read when the server starts; a request never names a path. Besides OpenAI's
API, the page uses only addresses below `/page/api/`. Requests there that change something (POST) must contain the
page's token, which `Guard` checks: only a page that this server has sent knows it.
"""

import gzip
import hashlib
from html import escape
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tsugiki.generation.sampling import repetition_penalty_of
from tsugiki.io.file_names import CHAT_TEMPLATE_FILE
from tsugiki.serve.routes import get_route
from tsugiki.serve.served_adapters import ServedAdapters

_FOLDER = Path(__file__).with_name("page")
_INDEX = "index.html"
_TOKEN = "PAGE_TOKEN"  # placeholder in index.html
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def page_files() -> dict[str, Path]:
    """Return address -> file of the page."""
    paths = sorted(path for path in _FOLDER.rglob("*.*") if path.suffix in _TYPES)
    files = {f"/page/{path.relative_to(_FOLDER).as_posix()}": path for path in paths}
    files["/"] = files.pop(f"/page/{_INDEX}")
    return files


def page_routes(adapters: ServedAdapters, token: str) -> list[Route]:
    """Return the routes of the page's files, which get the token, and of the list of models that all views use."""
    files = [_file_route(address, path, token) for address, path in page_files().items()]
    return [*files, get_route("models", lambda: _models(adapters))]


def _file_route(address: str, path: Path, token: str) -> Route:
    content = path.read_bytes()
    if path.name == _INDEX:
        content = content.replace(_TOKEN.encode(), escape(token).encode())
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**HEADERS, "Content-Type": _TYPES[path.suffix], "ETag": f"W/{tag}", "Vary": "Accept-Encoding"}
    packed = gzip.compress(content, mtime=0)

    async def answer(request: Request) -> Response:
        if tag in request.headers.get("If-None-Match", ""):
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            return Response(packed, headers={**headers, "Content-Encoding": "gzip"})
        return Response(content, headers=headers)

    return Route(address, answer)


def _models(adapters: ServedAdapters) -> dict[str, Any]:
    """Return the base and the adapters, and for each whether it has a chat template."""
    base_chats = adapters.base.tokenizer.chat_template is not None
    penalty = repetition_penalty_of(adapters.engine.model)

    def chats(name: str) -> bool:
        return base_chats or (adapters.folder(name) / CHAT_TEMPLATE_FILE).is_file()

    return {
        "base": {"name": adapters.base.name, "chat": base_chats, "repetition_penalty": penalty},
        "adapters": [
            {"name": name, "chat": chats(name), "given": name in adapters.folders} for name in adapters.names()
        ],
        "runs": [{"name": name, "chat": chats(name)} for name in adapters.run_names()],
        "context": adapters.engine.context,
    }
