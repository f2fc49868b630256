"""The requests of ``/tokenize`` and ``/detokenize``."""

from typing import Annotated, Any

from pydantic import Field

from serve.protocol.request_model import RequestModel, TokenId
from serve.protocol.tools import Tool


class TokenizeRequest(RequestModel):
    """A text, or a conversation, to turn into tokens: ``prompt`` or ``messages``."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(RequestModel):
    """Tokens to turn into text."""

    model: str | None = None
    tokens: list[TokenId]
    skip_special_tokens: bool | None = None
