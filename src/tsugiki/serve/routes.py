"""Routes whose answers are JSON: of OpenAI's interface, and for what only the page asks, below `PAGE_API`."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tsugiki.language import _
from tsugiki.serve.errors import ApiError
from tsugiki.serve.protocol import read
from tsugiki.serve.security import PAGE_API

_MOST_OF_PAGE = 10_000
Parsed = TypeVar("Parsed", bound=BaseModel)


def api_route(address: str, answer: Callable[[Request], Any], method: str = "GET") -> Route:
    """Return a route that answers with the result of a function of the request, which is called in a thread."""

    async def respond(request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(answer, request))

    return Route(address, respond, methods=[method])


def page_of(objects: Sequence[dict[str, Any]], request: Request, most: int) -> dict[str, Any]:
    """Return a page of a list as OpenAI's clients ask for it: `limit` objects after the one with the id `after`."""
    query = request.query_params
    ids = [one["id"] for one in objects]
    after, limit = query.get("after"), query.get("limit", str(most))
    if after is not None and after not in ids:
        raise ApiError(400, _("{name!r} is not in the list").format(name=after[:100]), "after", "invalid_value")
    if not limit.isdecimal() or not 1 <= int(limit[:9]) <= _MOST_OF_PAGE:
        message = _("a page of a list has from 1 to {most} entries").format(most=_MOST_OF_PAGE)
        raise ApiError(400, message, "limit", "invalid_value")
    begin = 0 if after is None else ids.index(after) + 1
    shown = objects[begin : begin + int(limit)]
    first, last = (shown[0]["id"], shown[-1]["id"]) if shown else (None, None)
    more = begin + len(shown) < len(objects)
    return {"object": "list", "data": shown, "first_id": first, "last_id": last, "has_more": more}


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
