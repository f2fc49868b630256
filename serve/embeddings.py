"""``POST /v1/embeddings``: texts as vectors of length 1, pooled from the model's last hidden states."""

import asyncio
import base64
import math
import struct
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from jaxdeploy.errors import RequestError
from serve.endpoint import Endpoint
from serve.protocol.embeddings import MAX_INPUTS, EmbeddingRequest
from serve.service import Service
from serve.state import ServerState


async def create_embeddings(state: ServerState, http: Request, request: EmbeddingRequest) -> Response:
    """Embed one or several texts."""
    service = state.service
    service.require_model(request.model)
    inputs = await asyncio.to_thread(encode_inputs, service, request)
    vectors = []
    for ids in inputs:
        # A thread per text, so that a client that leaves stops the rest.
        vector = await asyncio.to_thread(embed, service, ids, request.pooling or "mean")
        vectors.append(shortened(vector, request.dimensions))
    packed = request.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": i, "embedding": base64_floats(vector) if packed else vector}
        for i, vector in enumerate(vectors)
    ]
    tokens = sum(len(ids) for ids in inputs)
    counts = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": service.name, "usage": counts})


def encode_inputs(service: Service, request: EmbeddingRequest) -> list[list[int]]:
    """Token ids of each input.

    Raises:
        RequestError: a text that is not Unicode or has no tokens, a token that the model doesn't have, an input that is too long.
    """
    size, longest = service.model.config.vocab_size, service.session_len
    inputs = request.inputs()
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise RequestError(f"input must hold 1 to {MAX_INPUTS} texts, found {len(inputs)}", param="input")
    encoded = []
    for i, given in enumerate(inputs):
        ids = service.tokenizer.encode(given, add_special=True) if isinstance(given, str) else given
        where = "input" if given is request.input else f"input[{i}]"
        if not ids:
            raise RequestError(f"{where} is empty, which has no vector", param=where)
        if max(ids) >= size:
            raise RequestError(f"{where}: token id {max(ids)} is outside of the vocabulary of {size}", param=where)
        if len(ids) > longest:
            raise RequestError(f"{where} has {len(ids)} tokens, more than the {longest} that fit", param=where)
        encoded.append(ids)
    return encoded


def embed(service: Service, ids: list[int], pooling: str) -> list[float]:
    """The vector of one text. Takes a while: not for the event loop."""
    return service.model.embedder.embed(ids, pooling).tolist()


def shortened(vector: list[float], dimensions: int | None) -> list[float]:
    """The first ``dimensions`` numbers of a vector, scaled to length 1 again.

    Raises:
        RequestError: the vector has fewer.
    """
    if dimensions is None or dimensions == len(vector):
        return vector
    if dimensions > len(vector):
        raise RequestError(f"dimensions={dimensions} is more than this model's {len(vector)}", param="dimensions")
    kept = vector[:dimensions]
    norm = max(math.hypot(*kept), 1e-12)
    return [value / norm for value in kept]


def base64_floats(vector: Sequence[float]) -> str:
    """A vector as OpenAI packs it: little-endian float32 in base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


FLOATS = {"oneOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}]}
ANSWER = {
    "type": "object",
    "required": ["object", "data", "model", "usage"],
    "properties": {
        "object": {"const": "list"},
        "model": {"type": "string"},
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["object", "index", "embedding"],
                "properties": {
                    "object": {"const": "embedding"},
                    "index": {"type": "integer"},
                    "embedding": FLOATS,
                },
            },
        },
        "usage": {
            "type": "object",
            "required": ["prompt_tokens", "total_tokens"],
            "properties": {"prompt_tokens": {"type": "integer"}, "total_tokens": {"type": "integer"}},
        },
    },
}
ENDPOINTS = (
    Endpoint(
        "/v1/embeddings",
        "POST",
        create_embeddings,
        "Turn texts into vectors",
        body=EmbeddingRequest,
        answer=ANSWER,
        param_names={"prompt": "input"},
    ),
)
