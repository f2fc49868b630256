"""``GET /openapi.json``: the API described, made from the routes and the request models themselves."""

from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from typing import Any

from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.endpoint import Endpoint
from serve.state import ServerState

REF_TEMPLATE = "#/components/schemas/{model}"
ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
ERROR_REFERENCE = {"$ref": REF_TEMPLATE.format(model="Error")}
ALWAYS = {"401": "No API key, or an unknown one"}
WITH_MODEL = {"503": "The model is not ready, or the server is about to stop"}
WITH_BODY = {
    "400": "A field is wrong; param names it",
    "404": "The model is not served here",
    "408": "The body did not arrive in time",
    "413": "The body is too long",
    "429": "Too many requests wait already",
    "500": "The server failed",
}


def describe(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these endpoints."""
    endpoints = list(endpoints)
    models = sorted({endpoint.body for endpoint in endpoints if endpoint.body}, key=lambda model: model.__name__)
    names, schemas = models_json_schema([(model, "validation") for model in models], ref_template=REF_TEMPLATE)
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        path = endpoint.path.replace(":path}", "}")
        reference = names[endpoint.body, "validation"] if endpoint.body else None
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, reference)
    return {
        "openapi": "3.1.0",
        "info": {"title": "jaxdeploy", "version": version("jaxdeploy")},
        "paths": paths,
        "components": {
            "schemas": {**schemas.get("$defs", {}), "Error": ERROR_SCHEMA},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint, reference: Any) -> dict[str, Any]:
    good = {endpoint.content_type: {"schema": endpoint.answer}}
    if endpoint.streams:
        good["text/event-stream"] = {}  # a schema here would be one of single events
    errors = {**ALWAYS, **(WITH_MODEL if endpoint.needs_model else {}), **(WITH_BODY if endpoint.body else {})}
    if "{" in endpoint.path:
        errors["404"] = WITH_BODY["404"]
    if endpoint.public:
        del errors["401"]
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": endpoint.handler.__name__,
        "responses": {
            "200": {"description": "Done", "content": good},
            **{
                status: {
                    "description": text,
                    "content": {"application/json": {"schema": endpoint.error_schema or ERROR_REFERENCE}},
                }
                for status, text in errors.items()
            },
            **endpoint.other_answers,
        },
    }
    if reference is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": reference}}}
    if "{" in endpoint.path:
        operation["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    if not endpoint.public:
        operation["security"] = [{}, {"key": []}]
    return operation


@cache
def _document() -> dict[str, Any]:
    from serve.routes import ENDPOINTS as ALL  # the table holds this very endpoint

    return describe(ALL)


async def openapi(state: ServerState, http: Request, body: None) -> Response:
    """The description of the whole API."""
    return JSONResponse(_document())


ENDPOINTS = (Endpoint("/openapi.json", "GET", openapi, "Describe the API", needs_model=False),)
