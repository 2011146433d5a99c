"""`GET /openapi.json`: the endpoints of the API and the fields of their requests, generated from the code."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.routing import BaseRoute, Route

from tsugiki.serve.completions import VERSION
from tsugiki.serve.protocol import AdapterRequest, ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest

BODIES: Mapping[str, type[BaseModel]] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/v1/load_lora_adapter": AdapterRequest,
    "/v1/unload_lora_adapter": AdapterRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
"""The endpoints that take a body, and its fields."""
_PAGE = "/page/"


def openapi(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of the API, without the endpoints that only the page uses."""
    kinds = sorted({*BODIES.values()}, key=lambda kind: kind.__name__)
    _names, schemas = models_json_schema(
        [(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}"
    )
    paths = {
        route.path.replace(":path}", "}"): _operation(route)
        for route in routes
        if isinstance(route, Route) and route.path != "/" and not route.path.startswith(_PAGE)
    }
    key = {"type": "http", "scheme": "bearer"}
    return {
        "openapi": "3.1.0",
        "info": {"title": "tsugiki serve", "version": VERSION},
        "paths": paths,
        "components": {"schemas": schemas["$defs"], "securitySchemes": {"key": key}},
        "security": [{}, {"key": []}],
    }


def _operation(route: Route) -> dict[str, Any]:
    """Return the method of a route, its parameters and the schema of its body."""
    described: dict[str, Any] = {
        "operationId": route.name,
        "responses": {"200": {"description": "the answer"}, "default": {"description": "an error in OpenAI's shape"}},
    }
    if route.param_convertors:
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in route.param_convertors
        ]
    kind = BODIES.get(route.path)
    if kind is None:
        return {"get": described}
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {
        "post": {**described, "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
    }
