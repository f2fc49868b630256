"""The requests of ``/v1/messages`` and ``/v1/messages/count_tokens``, Anthropic's API."""

from typing import Annotated, Any, Literal

from pydantic import Field

from serve.protocol.request_model import PositiveCount, RequestModel, Share
from serve.protocol.sampling import StopText
from serve.protocol.tools import ToolName


class TextBlock(RequestModel):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ThinkingBlock(RequestModel):
    """What the model thought in an earlier turn."""

    type: Literal["thinking"]
    thinking: str


class RedactedThinkingBlock(RequestModel):
    """Thinking that nobody can read; left out."""

    type: Literal["redacted_thinking"]


class ToolUseBlock(RequestModel):
    """A call that the model made."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolResultBlock(RequestModel):
    """What a call gave."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None


UserBlock = Annotated[TextBlock | ToolResultBlock, Field(discriminator="type")]
AssistantBlock = Annotated[
    TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock, Field(discriminator="type")
]


class UserMessage(RequestModel):
    """A turn of the user: text, and results of calls."""

    role: Literal["user"]
    content: str | Annotated[list[UserBlock], Field(min_length=1)]


class AssistantMessage(RequestModel):
    """A turn of the model. As the last message, the answer goes on with it."""

    role: Literal["assistant"]
    content: str | list[AssistantBlock]


class SystemMessage(RequestModel):
    """Instructions in the course of the conversation."""

    role: Literal["system"]
    content: str | list[TextBlock]


Message = Annotated[UserMessage | AssistantMessage | SystemMessage, Field(discriminator="role")]


class ClientTool(RequestModel):
    """A function that the model may call; tools that Anthropic runs itself are not to be had here."""

    type: Literal["custom"] | None = None
    name: ToolName
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class AnyToolChoice(RequestModel):
    """Whether there must be calls, and how many."""

    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool | None = None


class OneToolChoice(RequestModel):
    """Asks for calls of one function."""

    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class Thinking(RequestModel):
    """Whether the model should think, if its chat template lets one choose. A budget is not enforced."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]


class JSONFormat(RequestModel):
    """A schema for the answer."""

    type: Literal["json_schema"]
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(RequestModel):
    """What the answer must be."""

    format: JSONFormat | None = None


class CountTokensRequest(RequestModel):
    """A conversation."""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: list[ClientTool] | None = None
    tool_choice: Annotated[AnyToolChoice | OneToolChoice, Field(discriminator="type")] | None = None
    thinking: Thinking | None = None

    chat_template_kwargs: dict[str, Any] | None = None


class MessagesRequest(CountTokensRequest):
    """A conversation to go on with. ``seed`` and ``chat_template_kwargs`` are not Anthropic's."""

    max_tokens: PositiveCount
    stop_sequences: list[StopText] | None = None
    temperature: Share | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stream: bool | None = None
    output_config: OutputConfig | None = None

    seed: int | None = None
