"""From a request of Anthropic's API to a chat request."""

import json
from collections.abc import Iterable
from typing import Any

from jaxdeploy.errors import RequestError
from serve.protocol.chat import ChatCompletionRequest
from serve.protocol.messages import (
    AssistantMessage,
    CountTokensRequest,
    MessagesRequest,
    OneToolChoice,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)

TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_request(request: CountTokensRequest) -> ChatCompletionRequest:
    """The same conversation and options as a chat request.

    Raises:
        RequestError: the conversation ends in a way that no answer can follow.
    """
    fields = {**conversation(request), **tool_fields(request)}
    if isinstance(request, MessagesRequest):
        fields |= sampling_fields(request)
    # Not strict: the values were checked already, and here they are Python's.
    return ChatCompletionRequest.model_validate(fields, strict=False)


def conversation(request: CountTokensRequest) -> dict[str, Any]:
    """The fields with the messages.

    Raises:
        RequestError: the last message is the assistant's, but has no text to go on with.
    """
    messages: list[dict[str, Any]] = []
    if request.system:
        messages.append({"role": "system", "content": joined(request.system)})
    for message in request.messages:
        if isinstance(message, UserMessage):
            add_user(messages, message)
        elif isinstance(message, AssistantMessage):
            add_assistant(messages, message)
        else:
            messages.append({"role": "system", "content": joined(message.content)})
    kwargs = dict(request.chat_template_kwargs or {})
    if request.thinking is not None and request.thinking.type in ("enabled", "disabled"):
        kwargs.setdefault("enable_thinking", request.thinking.type == "enabled")
    prefilled = messages[-1]["role"] == "assistant"
    if prefilled and (messages[-1].get("tool_calls") or not messages[-1]["content"]):
        where = f"messages[{len(request.messages) - 1}]"
        raise RequestError(
            f"{where}: the last message is the assistant's; it must end with text to go on with, "
            "or be followed by a user message with the results of its calls",
            param=where,
        )
    return {
        "messages": messages,
        "chat_template_kwargs": kwargs or None,
        "continue_final_message": prefilled,
    }


def add_user(messages: list[dict[str, Any]], message: UserMessage) -> None:
    """Append a user's turn: results of calls become tool messages, texts in a row one user message."""
    blocks = [TextBlock(type="text", text=message.content)] if isinstance(message.content, str) else message.content
    for block in blocks:
        if isinstance(block, ToolResultBlock):
            messages.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": result_text(block)})
        elif messages and messages[-1]["role"] == "user":
            messages[-1]["content"] += f"\n{block.text}"
        else:
            messages.append({"role": "user", "content": block.text})


def add_assistant(messages: list[dict[str, Any]], message: AssistantMessage) -> None:
    """Append a turn of the model, or go on with the one before."""
    blocks = [TextBlock(type="text", text=message.content)] if isinstance(message.content, str) else message.content
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    turn = messages[-1]
    for block in blocks:
        if isinstance(block, TextBlock):
            turn["content"] += block.text
        elif isinstance(block, ThinkingBlock):
            turn["reasoning_content"] = turn.get("reasoning_content", "") + block.thinking
        elif isinstance(block, ToolUseBlock):
            function = {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}
            turn.setdefault("tool_calls", []).append({"id": block.id, "type": "function", "function": function})


def result_text(block: ToolResultBlock) -> str:
    """What the model is shown of a call's result."""
    text = joined(block.content or "")
    return f"Error: {text}" if block.is_error else text


def joined(content: str | Iterable[TextBlock]) -> str:
    """Text blocks as one text, a line or more each."""
    return content if isinstance(content, str) else "\n".join(block.text for block in content)


def tool_fields(request: CountTokensRequest) -> dict[str, Any]:
    """The fields with the tools."""
    tools = []
    for tool in request.tools or ():
        function: dict[str, Any] = {"name": tool.name}
        if tool.description is not None:
            function["description"] = tool.description
        function["parameters"] = tool.input_schema
        if tool.strict:
            function["strict"] = True
        tools.append({"type": "function", "function": function})
    choice = request.tool_choice
    fields: dict[str, Any] = {"tools": tools or None}
    if isinstance(choice, OneToolChoice):
        fields["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    elif choice is not None:
        fields["tool_choice"] = TOOL_CHOICES[choice.type]
    if choice is not None and choice.disable_parallel_tool_use:
        fields["parallel_tool_calls"] = False
    return fields


def sampling_fields(request: MessagesRequest) -> dict[str, Any]:
    """The fields that say how to answer."""
    fields: dict[str, Any] = {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "seed": request.seed,
    }
    if request.stop_sequences:
        # The text of the stop is needed to say which one it was; MatchedStop takes it off.
        fields |= {"stop": request.stop_sequences, "include_stop_str_in_output": True}
    if request.output_config is not None and request.output_config.format is not None:
        schema = {"schema": request.output_config.format.json_schema}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    return fields
