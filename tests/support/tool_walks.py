"""Random answers under a tool grammar, read back by the family's parser."""

import functools
import json
import random

import jsonschema
from support.byte_tokenizer import ByteTokenizer
from support.grammar_walks import random_answer
from support.tool_parsing import run, short

from jaxdeploy.grammar.compiler import GrammarCompiler
from jaxdeploy.grammar.control_tokens import control_tokens
from jaxdeploy.grammar.spec import GrammarSpec
from serve.tool_parsers import formats
from serve.tool_parsers.formats import ToolFormat

PARSER_OF: dict[ToolFormat, str] = {
    formats.INTERNLM2: "internlm2",
    formats.HERMES: "hermes",
    formats.QWEN3_CODER: "qwen3_coder",
    formats.LLAMA3: "llama3",
    formats.MISTRAL: "mistral",
    formats.MISTRAL_NAMED: "mistral",
    formats.DEEPSEEK_V3: "deepseek",
    formats.DEEPSEEK_V31: "deepseek",
    formats.GLM45: "glm45",
}


@functools.cache
def model_of(tool_format: ToolFormat, with_tags: bool) -> tuple[ByteTokenizer, GrammarCompiler]:
    """A tokenizer that has the format's tags as tokens, or spells them; and its compiler."""
    tokenizer = ByteTokenizer(tags=tool_format.tags if with_tags else ())
    return tokenizer, GrammarCompiler(tokenizer, tokenizer.vocab_size + 5)


def marks_of(tool_format: ToolFormat, with_tags: bool) -> dict[str, int]:
    """What the grammar may name by id."""
    return control_tokens(model_of(tool_format, with_tags)[0])


def walk(spec: GrammarSpec, tool_format: ToolFormat, with_tags: bool, seed: int) -> str:
    """A random answer that ends by itself."""
    tokenizer, compiler = model_of(tool_format, with_tags)
    tags = tuple(tag for tag in (tool_format.parameter_end, tool_format.call_end, tool_format.key_end) if tag)
    return random_answer(compiler.compile(spec, "tools"), tokenizer, random.Random(seed), tags=tags)


def read(text: str, tool_format: ToolFormat, tools: list[dict]) -> tuple[str, list[tuple[str, dict]]]:
    """The free text and the calls that the family's parser finds; every call must be whole."""
    items = short(run(PARSER_OF[tool_format], [text], tools))
    calls = [item for item in items if not isinstance(item, str)]
    assert all(len(call) == 2 for call in calls), text
    free = "".join(item for item in items if isinstance(item, str))
    return free, [(name, json.loads(arguments)) for name, arguments in calls]


def assert_valid(calls: list[tuple[str, dict]], tools: list[dict]) -> None:
    """Every call names a tool and satisfies its schema, as the client wrote it."""
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    for name, arguments in calls:
        jsonschema.validate(arguments, schemas[name])
