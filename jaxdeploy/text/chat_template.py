"""Chat messages to prompt text, through a jinja template in a sandbox."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jaxdeploy.errors import ConfigError, RequestError
from jaxdeploy.text.chat_messages import normalize_messages
from jaxdeploy.text.tokenizer import Tokenizer

_RESERVED = ("messages", "tools", "documents", "add_generation_prompt")
# Marks where the last message ends: private-use characters, so that no message holds it by chance, and a space, which
# shows whether the template trims.
_END_MARK = "\ue0f0\ue0f1\ue0f0 "
# What a template may do wrong with messages it did not expect. RecursionError: too deeply nested JSON.
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


class ChatTemplate:
    """A jinja chat template with the helpers that Hugging Face's templates expect.

    Args:
        source: jinja text.
        name: file or built-in name, for messages.
        variables: further names the template sees (``bos_token``, ``eos_token``).
        stop_tokens: texts that end an answer besides the tokenizer's EOS.
        is_base: the model has no chat format: contents are just put one after the other.

    Raises:
        ConfigError: the source is not valid jinja.
    """

    def __init__(
        self,
        source: str,
        *,
        name: str,
        variables: Mapping[str, Any] | None = None,
        stop_tokens: Sequence[str] = (),
        is_base: bool = False,
    ):
        self.source = source
        self.name = name
        self.stop_tokens = tuple(stop_tokens)
        self.is_base = is_base
        self._variables = dict(variables or {})
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(f"chat template {name}, line {error.lineno}: {error.message}") from None

    def render(
        self,
        messages: list[dict],
        *,
        tools: list[dict] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: dict | None = None,
    ) -> str:
        """The prompt of a conversation.

        Args:
            messages: OpenAI messages, left unchanged.
            tools: OpenAI tools, ``{"type": "function", "function": {...}}`` each.
            add_generation_prompt: end with the start of the assistant's turn.
            continue_final_message: leave the last message's turn open for the model to go on with it; overrules
                ``add_generation_prompt``.
            template_kwargs: the request's ``chat_template_kwargs``.

        Raises:
            RequestError: a message is malformed (``param`` says which part), or the template refuses the messages.
        """
        clash = [key for key in template_kwargs or {} if key in _RESERVED]
        if clash:
            raise RequestError(f"chat_template_kwargs may not set {clash[0]!r}", "chat_template_kwargs")
        chat = normalize_messages(messages)
        if continue_final_message:
            if not chat or not chat[-1]["content"]:
                raise RequestError("continue_final_message needs a last message with text", "messages")
            chat[-1]["content"] += _END_MARK
        try:
            text = self._template.render(
                {
                    **self._variables,
                    **(template_kwargs or {}),
                    "messages": chat,
                    "tools": tools or None,
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt and not continue_final_message,
                }
            )
        except _TEMPLATE_ERRORS as error:
            reason = str(error) or type(error).__name__
            raise RequestError(
                f"the chat template {self.name} can't render these messages: {reason}", "messages"
            ) from None
        return _cut_at_mark(text, self.name) if continue_final_message else text

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Ids of those stop tokens that are single tokens of the tokenizer; the others are to be matched as text."""
        return tuple(tokenizer.special_tokens[stop] for stop in self.stop_tokens if stop in tokenizer.special_tokens)


def encode_chat(tokenizer: Tokenizer, rendered: str) -> list[int]:
    """Token ids of a rendered prompt, with exactly one BOS if the tokenizer adds one by default."""
    ids = tokenizer.encode(rendered, add_special=False)
    if tokenizer.adds_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        return [tokenizer.bos_id, *ids]
    return ids


def _cut_at_mark(text: str, name: str) -> str:
    at = text.rfind(_END_MARK.rstrip())
    if at < 0:
        raise RequestError(f"the chat template {name} drops the last message, which can't be continued", "messages")
    # Where the mark's own space is gone the template trims contents; it could not trim what stood before the mark.
    trims = not text.startswith(_END_MARK, at)
    return text[:at].rstrip() if trims else text[:at]


class _Generation(Extension):
    """``{% generation %} .. {% endgeneration %}`` marks text to train on; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012, jinja's own declaration

    def parse(self, parser: Parser) -> Node | list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja's own filter escapes HTML and sorts keys; the models were trained on plain JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
