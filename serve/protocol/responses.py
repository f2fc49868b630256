"""The request of ``/v1/responses``."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, WithJsonSchema

from serve.protocol.request_model import PositiveCount, RequestModel, Share
from serve.protocol.sampling import Penalty, RepetitionPenalty, StopText, Temperature
from serve.protocol.tools import ToolName

ITEMS = "message, function_call, function_call_output or reasoning"


class TextPart(RequestModel):
    """A piece of text."""

    type: Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"]
    text: str


class RefusalPart(RequestModel):
    """What another model said instead of an answer."""

    type: Literal["refusal"]
    refusal: str


ContentPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]


class MessageItem(RequestModel):
    """What somebody said."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[ContentPart]


class FunctionCallItem(RequestModel):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class FunctionCallOutputItem(RequestModel):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[TextPart]


class ReasoningItem(RequestModel):
    """What the model thought."""

    type: Literal["reasoning"]
    summary: list[TextPart] | None = None
    content: list[TextPart] | None = None


def item_kind(item: Any) -> str | None:
    """The type of an item; messages need not say theirs."""
    kind = item.get("type") if isinstance(item, dict) else None
    if kind is None:
        return "message" if isinstance(item, dict) else None
    return kind if isinstance(kind, str) else None


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(
        item_kind,
        custom_error_type="unknown_item",
        custom_error_message=f"an item must be an object of type {ITEMS}",
    ),
]


class FunctionTool(RequestModel):
    """A function that the model may call; tools that OpenAI runs itself are not to be had here."""

    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedTool(RequestModel):
    """Names a function; as a tool choice, asks for a call of it."""

    type: Literal["function"]
    name: str


class AllowedTools(RequestModel):
    """Lets the model use only some of the tools."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1)]


TextFormat = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "required": ["type"],
            "properties": {
                "type": {"enum": ["text", "json_object", "json_schema"]},
                "name": {"type": "string"},
                "schema": {"type": "object"},
                "strict": {"type": ["boolean", "null"]},
            },
        }
    ),
]


class TextOptions(RequestModel):
    """What the answer must be."""

    format: TextFormat | None = None


class Reasoning(RequestModel):
    """How much to think. Only ``none`` means something here, to chat templates that can do without."""

    effort: str | None = None


class ResponsesRequest(RequestModel):
    """A conversation to go on with; the lower block is not OpenAI's."""

    input: str | list[Item]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: (
        Literal["none", "auto", "required"] | Annotated[NamedTool | AllowedTools, Field(discriminator="type")] | None
    ) = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: PositiveCount | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None

    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    include: list[str] | None = None
    top_logprobs: int | None = None

    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    repetition_penalty: RepetitionPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: int | None = None
    stop: StopText | list[StopText] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
