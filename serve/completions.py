"""``POST /v1/completions``: goes on with texts, without a chat template."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response

from jaxdeploy.engine.request import Output, Request, TokenLogprobs
from jaxdeploy.errors import PromptTooLongError, RequestError
from serve.completion_choice import CompletionChoice
from serve.constraints import check_ends, completion_constraint
from serve.endpoint import Endpoint
from serve.engine_client import Generation
from serve.protocol.completion import CompletionRequest
from serve.protocol.sampling import PARAM_NAMES, generation_config
from serve.request_log import log_prompt
from serve.service import Service
from serve.sse import DONE, EventStream, event
from serve.state import ServerState
from serve.usage import usage

MAX_CHOICES = 4096
"""Of one request; each takes memory as long as it runs."""


async def create_completion(state: ServerState, http: HTTPRequest, request: CompletionRequest) -> Response:
    """Complete one or several prompts."""
    service = state.service
    service.require_model(request.model)
    check_fields(request)
    encoded = await asyncio.to_thread(encode_prompts, service, request)
    completion_id = f"cmpl-{secrets.token_hex(16)}"
    for text, ids in encoded:
        log_prompt(state.options, completion_id, text, len(ids))
    requests = await engine_requests(service, request, completion_id, [ids for _, ids in encoded])
    n = request.n or 1
    choices = [CompletionChoice(service.tokenizer, request, i, *encoded[i // n]) for i in range(n * len(encoded))]
    scores: list[list[TokenLogprobs]] = []
    if request.echo and request.logprobs is not None:
        # One after the other: each takes the whole device.
        scores = [await asyncio.to_thread(service.model.prompt_logprobs, ids, request.logprobs) for _, ids in encoded]
    head = {
        "id": completion_id,
        "object": "text_completion",
        "created": int(time.time()),
        "model": service.name,
    }
    generation = service.client.generate(*requests)
    numbers = {submitted.id: i * n for i, submitted in enumerate(requests)}
    openings = [choice.opening(scores[choice.index // n] if scores else []) for choice in choices]
    if request.stream:
        events = completion_events(request, generation, choices, numbers, openings, head, encoded)
        return EventStream(events, generation.close, param_names=PARAM_NAMES)
    try:
        parts: list[list[dict[str, Any]]] = [[opening] if opening else [] for opening in openings]
        async for outputs in generation:
            for choice, output in _sorted_out(outputs, choices, numbers):
                parts[choice.index].append(choice.feed(output))
    finally:
        generation.close()
    whole = [choice.whole(parts[choice.index]) for choice in choices]
    return JSONResponse({**head, "choices": whole, "usage": count_tokens(encoded, choices)})


def count_tokens(encoded: list[tuple[str, list[int]]], choices: list[CompletionChoice]) -> dict[str, Any]:
    """The ``usage`` object; a prompt with several answers counts once."""
    n = len(choices) // len(encoded)
    return usage(
        sum(len(ids) for _, ids in encoded),
        sum(choice.tokens for choice in choices),
        cached_tokens=sum(choice.cached_tokens for choice in choices[::n]),
    )


def check_fields(request: CompletionRequest) -> None:
    """Refuse what can't be done.

    Raises:
        RequestError: it can't.
    """
    if request.suffix:
        raise RequestError("suffix is not supported: this model only goes on with a text", param="suffix")
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise RequestError(f"best_of={request.best_of} is not supported; it may only equal n", param="best_of")
    if request.new_tokens == 0 and not request.echo:
        raise RequestError("max_tokens=0 makes sense with echo: true only", param="max_tokens")
    choices = len(request.prompts()) * (request.n or 1)
    if choices > MAX_CHOICES:
        raise RequestError(f"prompts times n are {choices}, more than {MAX_CHOICES}; send several requests", "prompt")


def encode_prompts(service: Service, request: CompletionRequest) -> list[tuple[str, list[int]]]:
    """Text and token ids of each prompt.

    Raises:
        RequestError: a text that is not Unicode, no tokens, or tokens that don't exist.
        PromptTooLongError: more tokens than the context holds.
    """
    tokenizer = service.tokenizer
    add_special = request.add_special_tokens is not False
    encoded = [
        (prompt, tokenizer.encode(prompt, add_special=add_special))
        if isinstance(prompt, str)
        else (tokenizer.decode(prompt, skip_special=False), prompt)
        for prompt in request.prompts()
    ]
    # The engine checks all this again, but scores of a prompt are computed before it is asked.
    size, most = service.model.config.vocab_size, service.session_len
    for _, ids in encoded:
        if not ids:
            raise RequestError("the prompt has no tokens; give at least one", param="prompt")
        if max(ids) >= size:
            raise RequestError(f"token id {max(ids)} is outside of the vocabulary of {size}", param="prompt")
        if len(ids) > most:
            raise PromptTooLongError(f"the prompt has {len(ids)} tokens, the context {most}", param="prompt")
    return encoded


async def engine_requests(
    service: Service, request: CompletionRequest, completion_id: str, prompts: list[list[int]]
) -> list[Request]:
    """What the engine gets: a request per prompt, or none if no new tokens are wanted.

    Raises:
        RequestError: an option that can't work.
    """
    if request.new_tokens == 0:
        return []
    config = generation_config(
        request,
        service.defaults,
        max_new_tokens=request.new_tokens,
        logprobs=request.logprobs,
        skip_special_tokens=request.skip_special_tokens is not False,
    )
    constraint = await completion_constraint(request, service)
    check_ends(config, constraint)
    return [Request(f"{completion_id}-{i}", ids, config, constraint) for i, ids in enumerate(prompts)]


async def completion_events(
    request: CompletionRequest,
    generation: Generation,
    choices: list[CompletionChoice],
    numbers: dict[str, int],
    openings: list[dict[str, Any] | None],
    head: dict[str, Any],
    encoded: list[tuple[str, list[int]]],
) -> AsyncIterator[bytes]:
    """The events of a streamed completion.

    Raises:
        EngineError: the engine ended an answer with an error.
    """
    base = {**head, "usage": None} if request.include_usage else head
    first = b"".join(event({**base, "choices": [opening]}) for opening in openings if opening)
    if first:
        yield first
    async for outputs in generation:
        parts = [choice.feed(output) for choice, output in _sorted_out(outputs, choices, numbers)]
        piece = b"".join(event({**base, "choices": [part]}) for part in parts if _says_something(part))
        if piece:
            yield piece
    if request.include_usage:
        yield event({**head, "choices": [], "usage": count_tokens(encoded, choices)})
    yield DONE


def _sorted_out(
    outputs: Iterable[Output], choices: list[CompletionChoice], numbers: dict[str, int]
) -> list[tuple[CompletionChoice, Output]]:
    return [(choices[numbers[output.request_id] + output.index], output) for output in outputs]


def _says_something(part: dict[str, Any]) -> bool:
    return bool(part["text"] or part["logprobs"] or part["finish_reason"])


ENDPOINTS = (
    Endpoint(
        "/v1/completions",
        "POST",
        create_completion,
        "Go on with texts",
        body=CompletionRequest,
        streams=True,
        param_names=PARAM_NAMES,
    ),
)
