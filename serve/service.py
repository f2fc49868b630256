"""The loaded model as the endpoints see it: its name, its defaults, its formats, and the client of its engine."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxdeploy.engine.request import Constraint
from jaxdeploy.errors import ConfigError
from jaxdeploy.grammar.control_tokens import control_tokens
from jaxdeploy.grammar.spec import GrammarSpec
from jaxdeploy.grammar.thinking_tags import ThinkingTags
from jaxdeploy.text.tokenizer import Tokenizer
from serve.engine_client import EngineClient
from serve.engine_stats import EngineStats, read_stats
from serve.errors import HTTPError
from serve.metrics import Metrics
from serve.options import ServerOptions
from serve.reasoning.think import thinks
from serve.served_model import ServedModel
from serve.tool_parsers.formats import ToolFormat
from serve.tool_parsers.registry import choose_format, choose_parser_name, parser_class

SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""What is taken from a generation_config.json."""

DEFAULT_PARSER = "hermes"
"""For models that say nothing of tools: the format that the most models were trained on."""


@dataclass(frozen=True)
class Service:
    """Everything that answers.

    Attributes:
        name: what clients call the model.
        client: of the engine.
        defaults: sampling options for requests that leave them out.
        tool_parser: name of the tool-call parser; None if tools are refused.
        tool_format: how it writes tool calls.
        thinks: answers may begin with a ``<think>`` block.
        stop_words: texts that end a chat turn and are no tokens of their own.
        created: Unix time.
    """

    name: str
    model: ServedModel
    client: EngineClient
    options: ServerOptions
    defaults: dict[str, Any]
    tool_parser: str | None
    tool_format: ToolFormat | None
    thinks: bool
    stop_words: tuple[str, ...]
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.model.tokenizer

    @property
    def session_len(self) -> int:
        """Most tokens of a request, prompt and answer."""
        return self.model.engine.session_len

    def stats(self) -> EngineStats:
        """What the engine is doing."""
        return read_stats(self.model.engine)

    def compile_grammar(
        self, spec: GrammarSpec, param: str, thinking: ThinkingTags | None = None
    ) -> Callable[[], Constraint]:
        """What holds an answer to a grammar. Takes a while: not for the event loop.

        Args:
            param: the request's field that the grammar comes from.
            thinking: the grammar holds from where this ends.

        Raises:
            RequestError: the grammar is unsupported; ``param`` is set.
        """
        return self._compiler.compile(spec, param, thinking)

    def require_model(self, name: str | None) -> None:
        """Refuse a request for another model; one that names none is fine.

        Raises:
            HTTPError: 404.
        """
        if name is not None and name != self.name:
            raise HTTPError(
                404, f"model {name!r} is not served here; use {self.name!r}", param="model", code="model_not_found"
            )

    @cached_property
    def control_tokens(self) -> dict[str, int]:
        """Tokens that stand for their text in a grammar, such as the tags of a tool call."""
        return control_tokens(self.tokenizer)

    @cached_property
    def _compiler(self):
        # Here and not above: llguidance is loaded by the first request that needs a grammar.
        from jaxdeploy.grammar.compiler import GrammarCompiler

        return GrammarCompiler(self.tokenizer, self.model.config.vocab_size, self.model.engine.end_ids)


def make_service(model: ServedModel, options: ServerOptions, metrics: Metrics) -> Service:
    """Wire a loaded model up. Call it on the event loop.

    Raises:
        ConfigError: an unknown tool-call parser, or a bad generation-config file.
    """
    template, special = model.chat_template, model.tokenizer.special_tokens
    parser = options.tool_call_parser or choose_parser_name(model.config.family, template.source, special)
    parser = None if parser == "none" else parser or DEFAULT_PARSER
    if parser is not None:
        parser_class(parser)  # an unknown name is an error now, not in the first request
    batch = model.engine.limits.batch_size
    return Service(
        name=options.model_name or model.name,
        model=model,
        client=EngineClient(model.runner, capacity=batch + options.max_queue, metrics=metrics),
        options=options,
        defaults=sampling_defaults(options.generation_config, model.generation_defaults),
        tool_parser=parser,
        tool_format=None if parser is None else choose_format(parser, template.source, special),
        thinks=thinks(template.source) if options.reasoning_parser is None else options.reasoning_parser == "think",
        stop_words=tuple(stop for stop in template.stop_tokens if stop not in special),
    )


def sampling_defaults(source: str, of_model: dict[str, Any]) -> dict[str, Any]:
    """Sampling options of a generation_config.json.

    Args:
        source: "auto" takes the model's, "none" none, anything else is the path of a file.
        of_model: the model's file.

    Raises:
        ConfigError: the file can't be read, or is no JSON object.
    """
    if source == "none":
        return {}
    found: Any = of_model
    if source != "auto":
        try:
            found = json.loads(Path(source).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--generation-config {source!r} is neither auto, none nor a JSON file: {error}"
            ) from None
        if not isinstance(found, dict):
            raise ConfigError(f"--generation-config {source} must hold a JSON object, found {found!r}")
    return {key: found[key] for key in SAMPLING_DEFAULTS if found.get(key) is not None}
