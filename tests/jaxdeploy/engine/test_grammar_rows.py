"""Answers held to a grammar, in the engine: real grammars end the answer, failing ones end only their own."""

import json

import numpy as np
import pytest
from support.tiny_engine import END, VOCABULARY, AsciiTokenizer, run_all, text_of, tiny_engine, tokens_of

from jaxdeploy.config.generation import GenerationConfig
from jaxdeploy.engine.engine import Engine
from jaxdeploy.engine.request import Request
from jaxdeploy.errors import RequestError
from jaxdeploy.grammar.compiler import GrammarCompiler
from jaxdeploy.grammar.spec import GrammarSpec

SAMPLED = GenerationConfig(max_new_tokens=60, do_sample=True, temperature=1.0, top_k=0, random_seed=3)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine()


class FailsAtThird:
    """Allows everything twice, then fails."""

    def __init__(self):
        self.masks = 0

    def mask(self) -> np.ndarray:
        self.masks += 1
        if self.masks == 3:
            raise RequestError("the grammar of 'tools' failed", param="tools")
        return np.full(VOCABULARY // 32, 0xFFFFFFFF, np.uint32)

    def advance(self, token: int) -> None:
        pass


def test_failing_grammar_ends_its_own_answer_with_an_error(engine):
    config = GenerationConfig(max_new_tokens=8, ignore_eos=True, do_sample=True, random_seed=1)
    engine.submit(Request("free", [1, 2, 3], config))
    alone = tokens_of(run_all(engine), "free")
    engine.submit(Request("bound", [1, 2], config, constraint=FailsAtThird))
    engine.submit(Request("free", [1, 2, 3], config))
    outputs = run_all(engine)
    last = [output for output in outputs if output.request_id == "bound"][-1]
    assert (last.finish_reason, last.error) == ("error", "the grammar of 'tools' failed")
    assert len(tokens_of(outputs, "bound")) == 2
    assert tokens_of(outputs, "free") == alone
    assert not engine.has_work
    assert engine.allocator.used_pages == 0


def test_failing_grammar_alone_in_its_batch(engine):
    engine.submit(Request("bound", [1, 2], SAMPLED, constraint=FailsAtThird))
    assert [output.finish_reason for output in run_all(engine)][-1] == "error"
    assert engine.allocator.used_pages == 0


def test_grammar_answers_end_by_themselves(engine):
    compiler = GrammarCompiler(AsciiTokenizer(), VOCABULARY, engine.end_ids)
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["a"],
    }
    specs = [GrammarSpec.json_schema({**schema, "additionalProperties": False}), GrammarSpec.choice(["red", "blue"])]
    for i, spec in enumerate(specs):
        engine.submit(Request(str(i), [5, 6, 7], SAMPLED, constraint=compiler.compile(spec)))
    outputs = run_all(engine)
    assert 0 <= json.loads(text_of(outputs, "0"))["a"] <= 99
    assert text_of(outputs, "1") in ("red", "blue")
    assert [output.finish_reason for output in outputs if output.finish_reason] == ["stop", "stop"]
    assert tokens_of(outputs, "1")[-1] == END
