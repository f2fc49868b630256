"""``GET /v1/models`` and ``/v1/models/{id}``."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.endpoint import Endpoint
from serve.service import Service
from serve.state import ServerState


def model_object(service: Service) -> dict[str, Any]:
    """The model as OpenAI describes one; ``max_model_len`` is vLLM's addition."""
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "jaxdeploy",
        "root": service.model.name,
        "max_model_len": service.session_len,
    }


async def list_models(state: ServerState, http: Request, body: None) -> Response:
    """All models: the one that is served."""
    return JSONResponse({"object": "list", "data": [model_object(state.service)]})


async def get_model(state: ServerState, http: Request, body: None) -> Response:
    """One model."""
    service = state.service
    service.require_model(http.path_params["id"])
    return JSONResponse(model_object(service))


ENDPOINTS = (
    Endpoint("/v1/models", "GET", list_models, "List the models"),
    Endpoint("/v1/models/{id:path}", "GET", get_model, "Describe a model"),
)
