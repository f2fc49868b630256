"""``GET /health``: may traffic come?"""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.endpoint import Endpoint
from serve.state import ServerState


async def health(state: ServerState, http: Request, body: None) -> Response:
    """200 when ready, else 503; the body says ``loading 40 %``, ``compiling 7/14``, ``ready``, ``draining`` or ``dead``."""
    ready = state.phase == "ready"
    return JSONResponse({"status": state.status}, status_code=200 if ready else 503)


STATUS_SCHEMA = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}
NOT_READY = {"description": "Not ready", "content": {"application/json": {"schema": STATUS_SCHEMA}}}
ENDPOINTS = (
    Endpoint(
        "/health",
        "GET",
        health,
        "Tell whether the server is ready",
        answer=STATUS_SCHEMA,
        other_answers={"503": NOT_READY},
        needs_model=False,
        public=True,
    ),
)
