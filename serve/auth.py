"""Lets in who has an API key."""

import hmac
from collections.abc import Mapping, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.error_response import ErrorResponse
from serve.errors import ErrorBody, HTTPError, openai_body

BEARER = "bearer "


class ApiKeyMiddleware:
    """Answers 401 to requests without a known key, but on public paths and for CORS preflights (which carry none).

    Args:
        app: what is guarded.
        keys: that open the door, as ``Authorization: Bearer KEY`` or ``x-api-key: KEY``; without any it stands open.
        public: paths that need none.
        error_bodies: the shape of errors on paths where it is not OpenAI's.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[str],
        public: frozenset[str],
        error_bodies: Mapping[str, ErrorBody] | None = None,
    ):
        self.app = app
        self._keys = [key.encode() for key in keys]
        self._public = public
        self._error_bodies = error_bodies or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http" or not self._keys or scope["path"] in self._public or scope["method"] == "OPTIONS":
            await self.app(scope, receive, send)
            return
        given = given_key(Headers(scope=scope))
        if given is not None and self._known(given):
            await self.app(scope, receive, send)
            return
        reason = "no API key was given" if given is None else "the API key is unknown"
        message = f"{reason}; send it as 'Authorization: Bearer KEY'"
        headers = {"WWW-Authenticate": "Bearer"}
        error = HTTPError(401, message, code="invalid_api_key", headers=headers, close=scope["method"] == "POST")
        body = self._error_bodies.get(scope["path"], openai_body)
        await ErrorResponse(error, body)(scope, receive, send)

    def _known(self, given: str) -> bool:
        """Compares with every key, each in constant time, so that the time taken says nothing about any of them."""
        known = False
        for key in self._keys:
            known |= hmac.compare_digest(given.encode("utf-8", "replace"), key)
        return known


def given_key(headers: Headers) -> str | None:
    """The key that a request carries."""
    authorization = headers.get("authorization", "")
    if authorization.lower().startswith(BEARER):
        return authorization[len(BEARER) :].strip()
    return headers.get("x-api-key")
