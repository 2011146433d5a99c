"""Routes whose answers are JSON: of OpenAI's interface, and for what only the page asks, below `PAGE_API`."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar
from urllib.parse import urljoin

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tsugiki.language import _
from tsugiki.serve.errors import invalid
from tsugiki.serve.protocol import OpenFields, read, validated
from tsugiki.serve.security import PAGE_API

Parsed = TypeVar("Parsed", bound=BaseModel)


class PageQuery(OpenFields):
    """Which part of a list a request asks for."""

    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=10_000, strict=False)]


def page_of(objects: Sequence[dict[str, Any]], request: Request, usual: int = 20) -> dict[str, Any]:
    """Return a page of a list: `limit` objects, or as many as `usual`, after the one with the id `after`."""
    asked = validated(PageQuery, {"limit": usual, **request.query_params})
    places = {None: 0, **{one["id"]: place for place, one in enumerate(objects, 1)}}
    begin = places.get(asked.after)
    if begin is None:
        message = _("{name!r} is not in the list", name=str(asked.after)[:100])
        raise invalid(message, "after")
    end = begin + asked.limit
    return {"object": "list", "data": objects[begin:end], "has_more": end < len(objects)}


def get_route(address: str, answer: Callable[..., Any], parameter: str | None = None) -> Route:
    """Return a route as `json_route` whose function gets the value of a parameter of the query, if one is named."""
    return json_route(address, lambda asked: answer(*([asked.query_params.get(parameter, "")] if parameter else [])))


def post_route(address: str, kind: type[Parsed], answer: Callable[[Parsed], Any]) -> Route:
    """Return a route as `json_route` for POST whose function gets the body, parsed as `kind`."""
    return json_route(address, answer, "POST", kind)


def json_route(
    address: str, answer: Callable[[Any], Any], method: str = "GET", kind: type[BaseModel] | None = None
) -> Route:
    """Return a route below `PAGE_API`, or at an address that begins with a slash.

    It answers with the result of a function of the request, or of its body, parsed as `kind`. The function is called
    in a thread.
    """

    async def respond(request: Request) -> Response:
        asked = request if kind is None else await read(kind, request)
        return JSONResponse(await asyncio.to_thread(answer, asked))

    return Route(urljoin(PAGE_API, address), respond, methods=[method])
