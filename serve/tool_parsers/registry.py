"""The tool parsers by name, and which one a model needs."""

from collections.abc import Callable, Iterable

from jaxdeploy.errors import ConfigError
from serve.tool_parsers import formats
from serve.tool_parsers.base import StreamParser, ToolParser
from serve.tool_parsers.deepseek import DeepSeekParser
from serve.tool_parsers.delta_writer import random_call_id
from serve.tool_parsers.formats import ToolFormat
from serve.tool_parsers.glm45 import Glm45Parser
from serve.tool_parsers.hermes import HermesParser
from serve.tool_parsers.internlm2 import InternLM2Parser
from serve.tool_parsers.llama3 import Llama3Parser
from serve.tool_parsers.mistral import MistralParser
from serve.tool_parsers.qwen3_coder import Qwen3CoderParser

PARSERS: dict[str, type[StreamParser]] = {
    "internlm2": InternLM2Parser,
    "hermes": HermesParser,
    "qwen3_coder": Qwen3CoderParser,
    "llama3": Llama3Parser,
    "mistral": MistralParser,
    "deepseek": DeepSeekParser,
    "glm45": Glm45Parser,
}

# Names that LMDeploy's --tool-call-parser takes.
ALIASES = {
    "internlm": "internlm2",
    "qwen": "hermes",
    "qwen2d5": "hermes",
    "qwen3": "hermes",
    "qwen3coder": "qwen3_coder",
}

# The first tag found in a model's chat template names its parser. Of formats that share a tag, the rarer comes first.
_TELL_TALES = (
    ("<|action_start|>", "internlm2"),
    ("<｜tool▁call▁begin｜>", "deepseek"),
    ("<arg_key>", "glm45"),
    ("<parameter=", "qwen3_coder"),
    ("<tool_call>", "hermes"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|python_tag|>", "llama3"),
)


def parser_class(name: str) -> type[StreamParser]:
    """The parser called ``name``.

    Raises:
        ConfigError: there is none.
    """
    try:
        return PARSERS[ALIASES.get(name, name)]
    except KeyError:
        raise ConfigError(f"unknown tool-call parser {name!r}; known are {', '.join(PARSERS)}") from None


def make_parser(name: str, tools: Iterable[dict] = (), new_id: Callable[[], str] = random_call_id) -> ToolParser:
    """A fresh parser for one choice of one request.

    Args:
        name: a key of ``PARSERS`` or ``ALIASES``.
        tools: the request's tools.
        new_id: makes the ids of the calls.

    Raises:
        ConfigError: unknown name.
        RequestError: a tool's schema is nested too deep.
    """
    return parser_class(name)(tools, new_id)


def choose_parser_name(family: str, chat_template: str | None, special_tokens: Iterable[str] = ()) -> str | None:
    """The parser for a model, None if nothing says that it can call tools.

    Args:
        family: the model family of its config; settles ``internlm2``, whose template is built in.
        chat_template: the template's text. It outweighs the special tokens: a fine-tune keeps its base model's tokens.
        special_tokens: the tokenizer's special and added tokens.
    """
    if family == "internlm2":
        return "internlm2"
    tokens = frozenset(special_tokens)
    for places in (chat_template or "", tokens):
        for tag, name in _TELL_TALES:
            if tag in places:
                return name
    return None


def choose_format(name: str, chat_template: str | None, special_tokens: Iterable[str] = ()) -> ToolFormat:
    """What ``tool_choice`` is to constrain the model to: the parser's format, in the variant that the model writes.

    Args:
        name: a key of ``PARSERS`` or ``ALIASES``.
        chat_template: the template's text.
        special_tokens: the tokenizer's special and added tokens.

    Raises:
        ConfigError: unknown name.
    """
    parser_format = parser_class(name).FORMAT
    template = chat_template or ""
    if parser_format is formats.MISTRAL and ("[ARGS]" in template or "[ARGS]" in frozenset(special_tokens)):
        return formats.MISTRAL_NAMED
    if parser_format is formats.DEEPSEEK_V3 and template and "```json" not in template:
        return formats.DEEPSEEK_V31
    return parser_format
