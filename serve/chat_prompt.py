"""A conversation made ready for the engine: rendered, encoded, with what its answers need to be read."""

import asyncio
from dataclasses import dataclass
from typing import Any

from jaxdeploy.errors import RequestError
from jaxdeploy.text.chat_template import encode_chat
from serve.answer_reader import AnswerReader
from serve.reasoning.think import BEGIN, END, ReasoningParser, prompt_opens_thinking
from serve.service import Service
from serve.special_tokens import SpecialTokenFilter
from serve.tool_parsers.registry import make_parser
from serve.tool_prompt import messages_with_tools, template_shows_tools


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """What one chat request feeds to the engine.

    Attributes:
        text, ids: the prompt.
        tools: that the model was shown, as OpenAI tools; may be empty.
        inside_thinking: the prompt ends in an open ``<think>`` block.
    """

    text: str
    ids: list[int]
    tools: list[dict[str, Any]]
    inside_thinking: bool


async def chat_prompt(
    service: Service,
    messages: list[dict[str, Any]],
    *,
    tools: list[dict[str, Any]] | None = None,
    template_kwargs: dict[str, Any] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
) -> ChatPrompt:
    """Render and encode a conversation, on another thread: a long one takes a while.

    Raises:
        RequestError: a message is malformed, or the template refuses it; or there are tools but no parser.
    """
    if tools and service.tool_parser is None:
        raise RequestError(
            "this server was started without a tool-call parser; leave out 'tools', or set tool_choice to 'none'",
            param="tools",
        )

    def prepare() -> ChatPrompt:
        template, chat = service.model.chat_template, messages
        if tools and service.tool_format is not None and not template_shows_tools(template.source):
            chat = messages_with_tools(messages, tools, service.tool_format)
        text = template.render(
            chat,
            tools=tools or None,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template_kwargs=template_kwargs,
        )
        ids = encode_chat(service.tokenizer, text)
        return ChatPrompt(text, ids, tools or [], service.thinks and prompt_opens_thinking(text))

    return await asyncio.to_thread(prepare)


def keeps_special_tokens(service: Service, prompt: ChatPrompt) -> bool:
    """Whether the engine must leave special tokens in the text, because a parser looks for some of them."""
    return bool(prompt.tools) or service.thinks


def answer_readers(
    service: Service, prompt: ChatPrompt, count: int, *, one_call: bool = False, skip_special_tokens: bool = True
) -> list[AnswerReader]:
    """One reader for each of ``count`` answers.

    Args:
        one_call: at most one call is wanted.
        skip_special_tokens: leave them out of the text; False for a client that asked to see them.
    """
    dropped: set[str] = set()
    if keeps_special_tokens(service, prompt) and skip_special_tokens:
        wanted = {BEGIN, END, *(service.tool_format.tags if prompt.tools and service.tool_format else ())}
        special = service.tokenizer.special_ids
        dropped = {text for text, token in service.tokenizer.special_tokens.items() if token in special} - wanted
    return [
        AnswerReader(
            special_tokens=SpecialTokenFilter(dropped) if dropped else None,
            reasoning=ReasoningParser(prompt.inside_thinking) if service.thinks else None,
            tools=make_parser(service.tool_parser, prompt.tools) if prompt.tools and service.tool_parser else None,
            one_call=one_call,
        )
        for _ in range(count)
    ]
