"""``POST /tokenize`` and ``/detokenize``, as vLLM has them."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from jaxdeploy.errors import RequestError
from serve.chat_prompt import chat_prompt
from serve.endpoint import Endpoint
from serve.logprobs import token_text
from serve.protocol.tokens import DetokenizeRequest, TokenizeRequest
from serve.state import ServerState


async def tokenize(state: ServerState, http: Request, request: TokenizeRequest) -> Response:
    """Token ids of a text, or of a conversation as the chat template writes it."""
    service = state.service
    service.require_model(request.model)
    if (request.prompt is None) == (request.messages is None):
        raise RequestError("give either prompt or messages", param="prompt")
    if request.messages is not None:
        prompt = await chat_prompt(
            service,
            request.messages,
            tools=[tool.given for tool in request.tools or ()] or None,
            template_kwargs=request.chat_template_kwargs,
            add_generation_prompt=request.add_generation_prompt is not False,
        )
        ids = prompt.ids
    else:
        assert request.prompt is not None
        add_special = request.add_special_tokens is not False
        ids = await asyncio.to_thread(service.tokenizer.encode, request.prompt, add_special=add_special)
    answer: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": service.session_len}
    if request.return_token_strs:
        answer["token_strs"] = [token_text(service.tokenizer, token) for token in ids]
    return JSONResponse(answer)


async def detokenize(state: ServerState, http: Request, request: DetokenizeRequest) -> Response:
    """Text of token ids."""
    service = state.service
    service.require_model(request.model)
    size = service.model.config.vocab_size
    for i, token in enumerate(request.tokens):
        if token >= size:
            raise RequestError(f"token id {token} is outside of the vocabulary of {size}", param=f"tokens[{i}]")
    skip = bool(request.skip_special_tokens)
    text = await asyncio.to_thread(service.tokenizer.decode, request.tokens, skip_special=skip)
    return JSONResponse({"prompt": text})


ENDPOINTS = (
    Endpoint("/tokenize", "POST", tokenize, "Turn text into tokens", body=TokenizeRequest),
    Endpoint("/detokenize", "POST", detokenize, "Turn tokens into text", body=DetokenizeRequest),
)
