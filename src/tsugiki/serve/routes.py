"""Routes for the requests that only the page makes, below `PAGE_API`."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tsugiki.serve.protocol import read
from tsugiki.serve.security import PAGE_API

Parsed = TypeVar("Parsed", bound=BaseModel)


def get_route(address: str, answer: Callable[..., Any], parameter: str | None = None) -> Route:
    """Return a route below `PAGE_API` that answers with the result of a function, as JSON.

    The function is called in a thread, with the value of a parameter of the query if one is named.
    """

    async def respond(request: Request) -> Response:
        given = [] if parameter is None else [request.query_params.get(parameter, "")]
        return JSONResponse(await asyncio.to_thread(answer, *given))

    return Route(f"{PAGE_API}{address}", respond)


def post_route(address: str, kind: type[Parsed], answer: Callable[[Parsed], Any], status: int = 200) -> Route:
    """Return a route as `get_route`; the function is called with the body of the request, parsed as `kind`."""

    async def respond(request: Request) -> Response:
        parsed = await read(kind, request)
        return JSONResponse(await asyncio.to_thread(answer, parsed), status)

    return Route(f"{PAGE_API}{address}", respond, methods=["POST"])
