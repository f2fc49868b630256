"""Grammars compiled once and kept."""

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from llguidance import LLMatcher, LLParserLimits

from jaxdeploy.engine.request import Constraint
from jaxdeploy.errors import RequestError
from jaxdeploy.grammar.constraint import LLGuidanceConstraint
from jaxdeploy.grammar.spec import JSON_STYLE, GrammarSpec, lark_text
from jaxdeploy.grammar.thinking import AfterThinking
from jaxdeploy.grammar.thinking_tags import ThinkingTags
from jaxdeploy.grammar.token_table import TokenTable
from jaxdeploy.text.tokenizer import Tokenizer

CACHED_GRAMMARS = 64
MASK_THREADS = min(8, os.cpu_count() or 1)


class GrammarCompiler:
    """Makes constraints from specifications, for one model. Safe to use from any thread.

    Args:
        tokenizer: the model's.
        vocab_size: rows of the model's embedding (at least the tokenizer's own size, or some tokens are never allowed).
        end_ids: what ends an answer (``Engine.end_ids``); the tokenizer's own where empty.
        capacity: grammars kept; the one not used for longest goes first.
    """

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, end_ids: Iterable[int] = (), capacity: int = CACHED_GRAMMARS
    ):
        self._tokenizer, self._vocab_size, self._end_ids = tokenizer, vocab_size, tuple(end_ids)
        self._capacity = capacity
        self._compiled: OrderedDict[GrammarSpec, LLMatcher] = OrderedDict()
        self._table: TokenTable | None = None
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(MASK_THREADS, thread_name_prefix="jaxdeploy-grammar")

    @property
    def table(self) -> TokenTable:
        """The vocabulary, built when it is first needed."""
        with self._lock:
            if self._table is None:
                self._table = TokenTable(self._tokenizer, self._vocab_size, self._end_ids)
            return self._table

    def compile(
        self, spec: GrammarSpec, param: str = "response_format", thinking: ThinkingTags | None = None
    ) -> Callable[[], Constraint]:
        """What makes one constraint per answer, for ``Request.constraint``. Slow the first time: call it off the engine's thread.

        Args:
            spec: the grammar.
            param: the request's field that it came from.
            thinking: the model thinks first; the grammar holds behind that.

        Raises:
            RequestError: llguidance can't compile it, with its words; ``param`` is set.
        """
        table = self.table
        matcher = self._matcher(spec, param, table)

        def constraint() -> Constraint:
            inner = LLGuidanceConstraint(matcher.deep_copy(), table.words, self._pool, param)
            return inner if thinking is None else AfterThinking(inner, table, thinking)

        return constraint

    def close(self) -> None:
        """End the threads; constraints made before can't go on."""
        self._pool.shutdown(cancel_futures=True)

    def _matcher(self, spec: GrammarSpec, param: str, table: TokenTable) -> LLMatcher:
        with self._lock:
            matcher = self._compiled.get(spec)
            if matcher is not None:
                self._compiled.move_to_end(spec)
                return matcher
        matcher = LLMatcher(
            table.ll_tokenizer,
            _llguidance_grammar(spec, param),
            log_level=0,
            limits=LLParserLimits(verbose_errors=False),
        )
        if not matcher.is_error():
            matcher.compute_bitmask()  # the first mask builds the lexer's tables, which copies then share
        if matcher.is_error():
            raise RequestError(
                f"unsupported {spec.kind} grammar in {param!r}: {matcher.get_error().strip()}", param=param
            )
        with self._lock:
            self._compiled[spec] = matcher
            while len(self._compiled) > self._capacity:
                self._compiled.popitem(last=False)
        return matcher


def _llguidance_grammar(spec: GrammarSpec, param: str) -> str:
    try:
        match spec.kind:
            case "json_schema":
                return _json_grammar(json.loads(spec.source))
            case "json_object":
                return _json_grammar({"type": "object"})
            case "regex":
                return LLMatcher.grammar_from_regex(spec.source)
            case "choice":
                return LLMatcher.grammar_from_lark(_choice(json.loads(spec.source)))
            case "lark":
                return LLMatcher.grammar_from_lark(spec.source)
    except ValueError as error:
        raise RequestError(f"{param!r} holds no valid {spec.kind}: {error}", param=param) from None


def _json_grammar(schema: object) -> str:
    if not isinstance(schema, dict):
        raise ValueError(f"a JSON Schema is an object, not {json.dumps(schema)}")
    # The schema's own x-guidance could make llguidance pass over what it does not know ("lenient").
    return LLMatcher.grammar_from_json_schema(json.dumps({**schema, "x-guidance": JSON_STYLE}, ensure_ascii=False))


def _choice(texts: list[str]) -> str:
    if not texts:
        raise ValueError("there is nothing to choose from")
    return "start: " + " | ".join(map(lark_text, texts))
