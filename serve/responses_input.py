"""From a request of the responses API to a chat request."""

from collections.abc import Iterable, Sequence
from typing import Any

from jaxdeploy.errors import RequestError
from serve.errors import HTTPError
from serve.protocol.chat import ChatCompletionRequest
from serve.protocol.responses import (
    AllowedTools,
    FunctionCallItem,
    FunctionCallOutputItem,
    Item,
    MessageItem,
    NamedTool,
    ReasoningItem,
    RefusalPart,
    ResponsesRequest,
    TextPart,
)

LOGPROBS = "message.output_text.logprobs"


def check_supported(request: ResponsesRequest) -> None:
    """Refuse what would be silently left undone otherwise.

    Raises:
        HTTPError: 400, names the field.
    """
    refused = {
        "background": request.background or None,
        "conversation": request.conversation,
        "prompt": request.prompt,
        "top_logprobs": request.top_logprobs or None,
        "include": LOGPROBS if LOGPROBS in (request.include or ()) else None,
    }
    hints = {
        "background": "leave it out, and stream the answer",
        "conversation": "use previous_response_id, or send the whole conversation as input",
        "prompt": "send its text as instructions or input",
    }
    for name, value in refused.items():
        if value is not None:
            hint = hints.get(name, "use /v1/chat/completions for log-probabilities")
            raise HTTPError(400, f"{name}={str(value)[:80]!r} is not supported; {hint}", param=name)


def chat_request(request: ResponsesRequest, messages: Sequence[dict[str, Any]]) -> ChatCompletionRequest:
    """The same options as a chat request.

    Args:
        request: as it came.
        messages: the conversation without the request's instructions.

    Raises:
        RequestError: there is nothing to answer, or the choice of tools contradicts the tools.
    """
    if not messages:
        raise RequestError("input is empty; give at least one item", param="input")
    kwargs = dict(request.chat_template_kwargs or {})
    if request.reasoning is not None and request.reasoning.effort == "none":
        kwargs.setdefault("enable_thinking", False)
    fields = {
        "messages": with_instructions(request.instructions, messages),
        "max_tokens": request.max_output_tokens,
        "response_format": response_format(request),
        "chat_template_kwargs": kwargs or None,
        **tool_fields(request),
    }
    same = ("parallel_tool_calls", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    for name in (*same, "presence_penalty", "frequency_penalty", "seed", "stop"):
        fields[name] = getattr(request, name)
    # Not strict: the values were checked already, and here they are Python's.
    return ChatCompletionRequest.model_validate(fields, strict=False)


def with_instructions(instructions: str | None, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation with the instructions in its one system message at the start; most templates take no second."""
    system = [instructions] if instructions else []
    start = 0
    while start < len(messages) and messages[start]["role"] == "system":
        system.append(messages[start]["content"])
        start += 1
    head = [{"role": "system", "content": "\n\n".join(system)}] if system else []
    return [*head, *messages[start:]]


def input_messages(given: str | Iterable[Item]) -> list[dict[str, Any]]:
    """Items as chat messages. What the model said, thought and called in a row is one message of the assistant."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[dict[str, Any]] = []
    for item in given:
        if isinstance(item, FunctionCallOutputItem):
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": joined(item.output)})
        elif isinstance(item, MessageItem) and item.role != "assistant":
            role = "system" if item.role == "developer" else item.role
            messages.append({"role": role, "content": joined(item.content)})
        else:
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            add_to_turn(messages[-1], item)
    return messages


def add_to_turn(turn: dict[str, Any], item: MessageItem | FunctionCallItem | ReasoningItem) -> None:
    """Add an item to a message of the assistant."""
    if isinstance(item, MessageItem):
        turn["content"] += joined(item.content)
    elif isinstance(item, ReasoningItem):
        turn["reasoning_content"] = turn.get("reasoning_content", "") + joined(item.content or item.summary or ())
    else:
        function = {"name": item.name, "arguments": item.arguments}
        turn.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})


def joined(content: str | Iterable[TextPart | RefusalPart]) -> str:
    """Parts as one text."""
    if isinstance(content, str):
        return content
    return "".join(part.refusal if isinstance(part, RefusalPart) else part.text for part in content)


def tool_fields(request: ResponsesRequest) -> dict[str, Any]:
    """The fields with the tools, of which only the allowed ones are shown.

    Raises:
        RequestError: an allowed tool is not among the tools.
    """
    choice = request.tool_choice
    tools = [tool.model_dump(exclude_none=True, exclude={"type"}) for tool in request.tools or ()]
    if isinstance(choice, AllowedTools):
        allowed = {tool.name for tool in choice.tools}
        missing = allowed - {tool["name"] for tool in tools}
        if missing:
            raise RequestError(
                f"tool_choice allows {min(missing)!r}, which is not among the tools", param="tool_choice"
            )
        tools = [tool for tool in tools if tool["name"] in allowed]
        named: Any = choice.mode
    elif isinstance(choice, NamedTool):
        named = {"type": "function", "function": {"name": choice.name}}
    else:
        named = choice
    return {"tools": [{"type": "function", "function": tool} for tool in tools] or None, "tool_choice": named}


def response_format(request: ResponsesRequest) -> dict[str, Any] | None:
    """``text.format`` as chat completions spells it: a schema stands one level deeper there."""
    given = request.text.format if request.text else None
    if given is None or given.get("type") != "json_schema" or "json_schema" in given:
        return given
    return {"type": "json_schema", "json_schema": {key: value for key, value in given.items() if key != "type"}}
