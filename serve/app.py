"""The server as an ASGI application."""

from collections.abc import Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve import page_routes
from serve.auth import ApiKeyMiddleware
from serve.endpoint import EndpointApp
from serve.error_response import ErrorResponse
from serve.errors import http_error
from serve.routes import ENDPOINTS
from serve.state import ServerState


def create_app(state: ServerState) -> Starlette:
    """All endpoints, behind CORS and the API keys. The model may be loaded into ``state`` later."""
    options = state.options
    # The page is public too: a browser can't send a key before the page has asked for it.
    public = frozenset(
        [endpoint.path for endpoint in ENDPOINTS if endpoint.public] + [page.path for page in page_routes.routes]
    )
    error_bodies = {endpoint.path: endpoint.error_body for endpoint in ENDPOINTS}
    middleware = [
        Middleware(
            CORSMiddleware,
            allow_origins=list(options.allow_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
        ),
        Middleware(ApiKeyMiddleware, keys=options.api_keys, public=public, error_bodies=error_bodies),
    ]
    routes = [Route(endpoint.path, EndpointApp(endpoint, state), methods=[endpoint.method]) for endpoint in ENDPOINTS]
    handlers: Mapping[Any, Any] = {404: refuse, 405: refuse, Exception: refuse}
    app = Starlette(routes=[*routes, *page_routes.routes], middleware=middleware, exception_handlers=handlers)
    app.state.server = state
    return app


async def refuse(http: Request, problem: Exception) -> Response:
    """What no endpoint took, as an error in OpenAI's shape."""
    return ErrorResponse(http_error(problem))
