"""The HTTP application: routes, streams and errors."""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, TypeAlias
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tsugiki.errors import TsugikiError
from tsugiki.generation.engine import Engine
from tsugiki.language import _
from tsugiki.serve.completions import VERSION, Completions, Generation, chunks, whole_answer
from tsugiki.serve.errors import ApiError, ClientDisconnected, as_api_error, unless_disconnected, wait_for_disconnect
from tsugiki.serve.library_view import library_routes
from tsugiki.serve.page import page_files, page_routes
from tsugiki.serve.prompt_tokens import tokenize_route
from tsugiki.serve.protocol import ChatRequest, CompletionRequest, read
from tsugiki.serve.responses import ResponsesRequest, response_events, whole_response
from tsugiki.serve.routes import get_route, json_route
from tsugiki.serve.security import HEALTH, REQUEST_ID, Access, Guard
from tsugiki.serve.served_adapters import ServedAdapters
from tsugiki.serve.votes import Votes, vote_routes

_Json: TypeAlias = dict[str, Any]
_log = logging.getLogger("tsugiki.serve")
_IGNORED = "X-Ignored-Fields"
_MOST_NAMES, _LONGEST_NAME = 30, 60


def new_app(
    engine: Engine,
    adapters: ServedAdapters,
    access: Access,
    seconds: float,
    views: Sequence[Route] = (),
) -> Starlette:
    """Return the ASGI application; its engine has been started, and a request may take `seconds`.

    `views` are the routes of the page's views that need more than the engine and the adapters. `state.end_requests` of
    the application ends the requests that run.
    """
    completions = Completions(engine, adapters, seconds)
    started = int(time.time())
    page_token = secrets.token_urlsafe(32)

    async def health(request: Request) -> Response:
        if engine.alive:
            return JSONResponse({"status": "ok", "running": engine.running, "waiting": engine.waiting})
        return JSONResponse({"status": "stopping"}, 503, {"Retry-After": "5"})

    def card(name: str) -> dict[str, Any]:
        is_base = name == adapters.base.name
        return {
            "id": name,
            "object": "model",
            "created": started,
            "owned_by": "tsugiki",
            "root": name,
            "parent": None if is_base else adapters.base.name,
            "max_model_len": engine.context if is_base else None,
        }

    def models() -> dict[str, Any]:
        return {"object": "list", "data": [card(name) for name in (adapters.base.name, *adapters.names())]}

    async def complete(request: Request) -> Response:
        return await _answer(completions, request, await read(CompletionRequest, request))

    async def chat(request: Request) -> Response:
        return await _answer(completions, request, await read(ChatRequest, request))

    async def respond(request: Request) -> Response:
        parsed = await read(ResponsesRequest, request)
        whole, stream = partial(whole_response, parsed), partial(response_events, parsed)
        return await _answer(completions, request, parsed.as_chat(), whole, stream)

    routes = [
        Route(HEALTH, health),
        get_route("/v1/models", models),
        json_route("/v1/models/{name:path}", lambda request: card(adapters.find(request.path_params["name"]))),
        Route("/v1/completions", complete, methods=["POST"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/responses", respond, methods=["POST"]),
        get_route("/version", lambda: {"version": VERSION}),
        tokenize_route(adapters),
        *page_routes(adapters, page_token),
        *views,
        *library_routes(adapters),
        *vote_routes(Votes(adapters.library), adapters.base.name),
    ]
    public = {HEALTH, *page_files()}
    app = Starlette(
        routes=routes,
        middleware=[*_cors(access), Middleware(Guard, access=access, public=public, page_token=page_token)],
        exception_handlers={
            HTTPException: _http_error,
            ClientDisconnect: _disconnected,
            ClientDisconnected: _disconnected,
            ApiError: _error,
            TsugikiError: _error,
            Exception: _error,
        },
    )
    app.router.redirect_slashes = False
    app.state.end_requests = completions.end
    return app


def _cors(access: Access) -> list[Middleware]:
    """Return the CORS middleware for the allowed origins; empty if there are none."""
    if not access.origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=[*access.origins],
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", REQUEST_ID],
            expose_headers=[REQUEST_ID, _IGNORED],
        )
    ]


async def _answer(
    completions: Completions,
    request: Request,
    parsed: CompletionRequest | ChatRequest,
    whole: Callable[[Generation], Awaitable[_Json]] = whole_answer,
    stream: Callable[[Generation], AsyncIterator[_Json]] = chunks,
) -> Response:
    """Answer a request as a `whole` or as a `stream`. It is cancelled if the client disconnects."""
    async with AsyncExitStack() as stack:
        try:
            beginning = stack.enter_async_context(completions.begin(parsed))  # it may wait for an adapter
            generation = await unless_disconnected(request, beginning)
            watching = asyncio.create_task(_report_disconnect(request, generation))
            stack.callback(watching.cancel)
            headers = _naming(parsed.ignored)
            if not parsed.stream:
                return JSONResponse(await whole(generation), headers=headers)
            parts = stream(generation)
            first = await anext(parts)  # an error before the first token has its own status
        except ClientDisconnected:
            return Response(status_code=499)
        except Exception as error:
            return await _error(request, error)
        return _Stream(_events(first, parts, request), stack.pop_all(), headers)


def _naming(ignored: Sequence[str]) -> dict[str, str]:
    """Return the header that names the fields of a request that had no effect; empty if there are none."""
    names = [quote(name)[:_LONGEST_NAME] for name in ignored[:_MOST_NAMES]]
    return {_IGNORED: ", ".join(names)} if names else {}


class _Stream(StreamingResponse):
    """A stream of server-sent events. Its rows are freed in every case, also after an error."""

    def __init__(self, events: AsyncIterator[str], stack: AsyncExitStack, headers: dict[str, str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache", **headers})
        self.stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        async with self.stack:
            await super().__call__(scope, receive, send)


async def _report_disconnect(request: Request, generation: Generation) -> None:
    await wait_for_disconnect(request)
    generation.fail(ClientDisconnected())


async def _events(first: dict[str, Any], parts: AsyncIterator[dict[str, Any]], request: Request) -> AsyncIterator[str]:
    """Yield the server-sent events of a stream; an error is the last one before [DONE], as in vLLM."""
    yield _event(first)
    try:
        async for chunk in parts:
            yield _event(chunk)
    except ClientDisconnected:
        return
    except Exception as error:
        yield _event(_logged(request, error).body)
    yield "data: [DONE]\n\n"


def _event(message: dict[str, Any]) -> str:
    name = f"event: {message['type']}\n" if "type" in message else ""
    return f"{name}data: {json.dumps(message, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _logged(request: Request, error: Exception) -> ApiError:
    """Return the answer to an exception. An unexpected exception is logged with the request's id, and nothing else."""
    answer = as_api_error(error)
    if answer.status == 500:
        _log.error("an unexpected error in the request %s", request.scope.get(REQUEST_ID), exc_info=error)
    return answer


async def _error(request: Request, error: Exception) -> Response:
    answer = _logged(request, error)
    return JSONResponse(answer.body, answer.status, answer.headers)


async def _disconnected(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    paths = [route.path for route in request.app.routes]
    known = ", ".join(dict.fromkeys(path for path in paths if path.startswith("/v1/") and "{" not in path))
    messages = {
        404: _("there is nothing at this address; there are {known}", known=known),
        405: _("this address does not take this method"),
    }
    message = messages.get(error.status_code, error.detail)
    answer = ApiError(error.status_code, message)
    return JSONResponse(answer.body, error.status_code, error.headers)
