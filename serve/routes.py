"""The table of everything that the server answers. A new endpoint is a file of its own and a line here."""

from serve import (
    chat_completions,
    completions,
    embeddings,
    health,
    messages,
    metrics_page,
    models,
    openapi,
    responses,
    tokens,
)
from serve.endpoint import Endpoint

ENDPOINTS: tuple[Endpoint, ...] = (
    *chat_completions.ENDPOINTS,
    *completions.ENDPOINTS,
    *embeddings.ENDPOINTS,
    *messages.ENDPOINTS,
    *responses.ENDPOINTS,
    *models.ENDPOINTS,
    *tokens.ENDPOINTS,
    *health.ENDPOINTS,
    *metrics_page.ENDPOINTS,
    *openapi.ENDPOINTS,
)
