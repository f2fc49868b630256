"""Errors in the shape of Anthropic's API: ``{"type": "error", "error": {"type", "message"}}``."""

from typing import Any

from serve.errors import HTTPError
from serve.sse import named_event

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}


def anthropic_body(error: HTTPError) -> dict[str, Any]:
    """The JSON object of an error; the field at fault stands in the message, for there is no other place for it."""
    kind = TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    message = (
        error.message if error.param is None or error.param in error.message else f"{error.param}: {error.message}"
    )
    return {"type": "error", "error": {"type": kind, "message": message}}


def anthropic_events(error: HTTPError) -> bytes:
    """The end of an event stream that fails after it has started."""
    return named_event("error", anthropic_body(error))
