"""Errors as HTTP answers, in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``."""

import json
import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException

from jaxdeploy.errors import EngineError, PromptTooLongError, RequestError, UserError

TYPES = {401: "authentication_error", 429: "rate_limit_error"}
CODES = {404: "not_found", 405: "method_not_allowed"}

type ErrorBody = Callable[["HTTPError"], dict[str, Any]]
"""Makes the JSON object of an error."""

log = logging.getLogger(__name__)


class HTTPError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: what is wrong, and the way out.
        param: the offending field of the request, as a path such as ``messages[0].role``.
        code: a word for programs, such as ``model_not_found``.
        type: OpenAI's kind of error; None takes the status's.
        headers: of the answer.
        close: end the connection after the answer, because the request's body was not read.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        type: str | None = None,
        headers: Mapping[str, str] | None = None,
        close: bool = False,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.type = type or TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.headers = dict(headers or {})
        self.close = close


def http_error(problem: BaseException, param_names: Mapping[str, str] | None = None) -> HTTPError:
    """The answer for any exception; one that nobody foresaw is logged, and its text stays in the log.

    Args:
        problem: what was raised.
        param_names: what this endpoint's requests call fields that the engine knows under another name.
    """
    match problem:
        case HTTPError():
            return problem
        case RequestError():
            param = (param_names or {}).get(problem.param or "", problem.param)
            code = "context_length_exceeded" if isinstance(problem, PromptTooLongError) else None
            return HTTPError(400, str(problem), param=param, code=code)
        case UserError():
            return HTTPError(400, str(problem))
        case EngineError():
            return HTTPError(503, str(problem), code="engine_unavailable")
        case HTTPException():
            detail = problem.detail or HTTPStatus(problem.status_code).phrase
            return HTTPError(
                problem.status_code, detail, code=CODES.get(problem.status_code), headers=problem.headers or {}
            )
    log.error("a request failed", exc_info=problem)
    return HTTPError(500, "internal error; the server's log says more", code="internal_error")


def openai_body(error: HTTPError) -> dict[str, Any]:
    """The JSON object of an error."""
    return {
        "error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code},
    }


def openai_events(error: HTTPError) -> bytes:
    """The end of an event stream that fails after it has started."""
    return b"data: " + json.dumps(openai_body(error)).encode() + b"\n\ndata: [DONE]\n\n"
