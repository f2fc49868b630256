"""``GET /metrics``, for Prometheus."""

from starlette.requests import Request
from starlette.responses import Response

from serve.endpoint import Endpoint
from serve.state import ServerState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def show_metrics(state: ServerState, http: Request, body: None) -> Response:
    """All metrics in Prometheus' text format."""
    return Response(state.metrics.text(), media_type=CONTENT_TYPE)


ENDPOINTS = (
    Endpoint("/metrics", "GET", show_metrics, "Metrics for Prometheus", needs_model=False, content_type="text/plain"),
)
