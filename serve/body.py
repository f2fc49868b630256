"""Reads request bodies: never too long, never waiting for ever, and into a validated object."""

import asyncio
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from serve.errors import HTTPError

THREAD_BYTES = 256 * 1024
"""Longer bodies are parsed on another thread, so that nobody's stream waits."""
SHOWN = 80
"""Characters of a wrong value that its error repeats."""


async def read_body(request: Request, *, limit: int, seconds: float) -> bytes:
    """The whole body.

    Raises:
        HTTPError: 413 for more than ``limit`` bytes (by its header, without reading it, if it has one), 408 if it has not
            arrived after ``seconds``.
        ClientDisconnect: the client left.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_long(limit)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
                if size > limit:
                    raise _too_long(limit)
                if not message.get("more_body"):
                    return b"".join(chunks)
    except TimeoutError:
        raise HTTPError(
            408, f"the body did not arrive within {seconds:g} seconds ({size} bytes did)", code="timeout", close=True
        ) from None


async def parse_body[M: BaseModel](model: type[M], body: bytes) -> M:
    """``body`` as a request object.

    Raises:
        HTTPError: 400; it is not JSON (or not UTF-8, or nested too deep), or a field is wrong, which ``param`` then names.
    """
    try:
        if len(body) > THREAD_BYTES:
            return await asyncio.to_thread(model.model_validate_json, body)
        return model.model_validate_json(body)
    except ValidationError as error:
        raise await asyncio.to_thread(_explained, error, body) from None


def _too_long(limit: int) -> HTTPError:
    return HTTPError(413, f"the body is longer than {limit} bytes", code="request_too_large", close=True)


def _explained(error: ValidationError, body: bytes) -> HTTPError:
    errors = error.errors(include_url=False)
    first = errors[0]
    if first["type"] == "json_invalid":
        return HTTPError(400, f"the body is not valid JSON: {first.get('ctx', {}).get('error')}", code="invalid_json")
    if not first["loc"]:
        return HTTPError(400, f"the body must be a JSON object, found {_shown(first['input'])}")
    # A field that may be one of several types has an error for each: the one that got furthest knows most.
    value = from_json(body)
    alternatives = [other for other in errors if other["loc"][:1] == first["loc"][:1]]
    steps, first = max(((_steps(e["loc"], value), e) for e in alternatives), key=lambda found: len(found[0]))
    path = "".join(steps).removeprefix(".")
    missing = first["type"] == "missing"
    reason = str(first.get("ctx", {}).get("error", first["msg"]))
    found = "" if missing else f", found {_shown(first['input'])}"
    return HTTPError(400, f"{path}: {reason}{found}", param=path)


def _steps(location: tuple[int | str, ...], value: Any) -> list[str]:
    """``.messages``, ``[0]``, ``.role``: the error's place, without the names of types that pydantic puts into it."""
    steps = []
    for step in location:
        if isinstance(step, int) and isinstance(value, list) and step < len(value):
            steps.append(f"[{step}]")
            value = value[step]
        elif isinstance(step, str) and isinstance(value, dict) and (step in value or step == location[-1]):
            steps.append(f".{step}")
            value = value.get(step)
    return steps


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
