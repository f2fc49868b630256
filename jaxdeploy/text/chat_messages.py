"""OpenAI chat messages, brought into the one shape that chat templates are written for."""

import json
from typing import Any

from jaxdeploy.errors import RequestError


def normalize_messages(messages: list[dict]) -> list[dict]:
    """Copies messages so that every template understands them.

    Content parts become one text; a missing content becomes "" (None stays None beside tool calls, where templates ask
    for it); the arguments of a tool call, a JSON text in the OpenAI API, become the object that it describes.

    Raises:
        RequestError: a message is malformed; ``param`` names the part, as ``messages[1].content[0].type``.
    """
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _message(message: Any, where: str) -> dict:
    if not isinstance(message, dict):
        raise RequestError(f"{where} must be an object with a role and a content, found {message!r}", where)
    if not isinstance(message.get("role"), str):
        raise RequestError(f"{where}.role must be a string, found {message.get('role')!r}", f"{where}.role")
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise RequestError(f"{where}.tool_calls must be a list, found {calls!r}", f"{where}.tool_calls")
    content = _text(message.get("content"), f"{where}.content")
    if content is None and not calls:
        content = ""
    copied = {key: value for key, value in message.items() if key != "tool_calls"} | {"content": content}
    if calls:
        copied["tool_calls"] = [_tool_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return copied


def _text(content: Any, where: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"{where} must be a string or a list of text parts, found {content!r}", where)
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            found = kind if isinstance(part, dict) else part
            raise RequestError(
                f"{where}[{i}].type is {found!r}; this model reads text only, so use 'text'", f"{where}[{i}].type"
            )
        if not isinstance(part.get("text"), str):
            raise RequestError(f"{where}[{i}].text must be a string, found {part.get('text')!r}", f"{where}[{i}].text")
        texts.append(part["text"])
    return "".join(texts)


def _tool_call(call: Any, where: str) -> dict:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RequestError(f"{where}.function must be an object with a name, found {function!r}", f"{where}.function")
    # InternLM's own clients call the arguments `parameters`.
    arguments = function.get("arguments", function.get("parameters"))
    return {**call, "function": {**function, "arguments": _arguments(arguments)}}


def _arguments(arguments: Any) -> Any:
    """A text that is not JSON (an answer cut short, sent back) stays as it is: the model may see its own slip."""
    if arguments is None or arguments == "":
        return {}
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
