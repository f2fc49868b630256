"""Shows tools to models whose chat template can't."""

import json
from collections.abc import Sequence
from typing import Any

from jaxdeploy.text.chat_messages import normalize_messages
from serve.tool_parsers.formats import ToolFormat

EXAMPLE = ("FUNCTION_NAME", {"ARGUMENT": "VALUE"})


def template_shows_tools(source: str) -> bool:
    """Whether a chat template does something with a request's tools."""
    return "tools" in source


def messages_with_tools(
    messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], tool_format: ToolFormat
) -> list[dict[str, Any]]:
    """The conversation with the tools in its system prompt, and earlier calls as text.

    Args:
        messages: OpenAI messages, left unchanged.
        tools: OpenAI tools.
        tool_format: how the model is asked to write calls, and how its calls so far are shown.

    Raises:
        RequestError: a message is malformed.
    """
    chat = [_with_calls_as_text(message, tool_format) for message in normalize_messages(list(messages))]
    text = tools_text(tools, tool_format)
    if chat[0]["role"] == "system":
        return [{**chat[0], "content": f"{chat[0]['content']}\n\n{text}"}, *chat[1:]]
    return [{"role": "system", "content": text}, *chat]


def tools_text(tools: Sequence[dict[str, Any]], tool_format: ToolFormat) -> str:
    """What the system prompt says about the tools."""
    functions = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    return (
        f"You may call these functions, given as JSON with their parameters' schemas:\n{functions}\n\n"
        f"To call one, answer exactly in this form:\n{tool_format.render([EXAMPLE])}"
    )


def _with_calls_as_text(message: dict[str, Any], tool_format: ToolFormat) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not calls:
        return message
    text = tool_format.render((call["function"]["name"], _object(call["function"]["arguments"])) for call in calls)
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "content": f"{message['content'] or ''}{text}"}


def _object(arguments: Any) -> dict[str, Any]:
    return arguments if isinstance(arguments, dict) else {"arguments": arguments}
