"""The soak test of the engine: a short one passes, and what would be wrong is seen."""

import json
import sys
from pathlib import Path

import pytest
from support.tiny_engine import tiny_engine

from jaxdeploy.config.generation import GenerationConfig
from jaxdeploy.engine.request import Output, Request, TokenLogprobs
from jaxdeploy.engine.runner import EngineRunner

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in ("engine_bench", "soak_engine")]:
        del sys.modules[name]


@pytest.mark.parametrize("options", [["--setup", "drafts"], ["--setup", "drafts", "--thread"]], ids=["steps", "thread"])
def test_two_hundred_fuzzed_requests(scripts, tmp_path, options, capsys):
    from soak_engine import main

    report = tmp_path / "report.json"
    status = main(["--requests", "200", "--json", str(report), *options])
    (seen,) = json.loads(report.read_text())["soak"]
    assert seen["wrong"] == []
    assert status == 0, capsys.readouterr().out
    assert seen["requests"] == 200
    assert seen["compile misses"] == 0
    assert seen["preemptions"] > 0, "the pool was meant to be too small"
    assert min(seen[name] for name in ("cached tokens", "drafted", "refused", "asked again")) > 0
    assert seen["answered differently"] == 0
    assert set(seen["reasons"]) == {"stop", "length", "abort"}


def test_same_seed_same_requests(scripts):
    from engine_bench.byte_tokenizer import ByteTokenizer
    from engine_bench.fuzz import Fuzzer

    from jaxdeploy.grammar.compiler import GrammarCompiler

    grammars = GrammarCompiler(ByteTokenizer(288), 288)
    cases = [[Fuzzer(256, 64, 8, grammars, seed=seed).case() for _ in range(50)] for seed in (1, 1, 2)]
    first, again, other = ([(c.request.prompt_ids, c.request.config, c.grammar) for c in some] for some in cases)
    assert first == again != other
    grammars.close()


GOOD = {"tokens": (5, 6, 7), "text": "abc", "reason": "length", "config": {"max_new_tokens": 3}}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"reason": "stop", "tokens": (5, 9)}, None),
        ({"reason": "error"}, "ended by 'error'"),
        ({"reason": "abort"}, "nobody aborted it"),
        ({"tokens": (5, 6)}, "'length' after 2 of 3"),
        ({"tokens": (5, 6, 7, 8)}, "4 tokens where 3 are allowed"),
        ({"tokens": (5, 9, 7)}, "went on after an end token"),
        ({"reason": "stop"}, "'stop' without an end"),
        ({"config": {"max_new_tokens": 3, "bad_token_ids": (6,)}}, "bad tokens {6}"),
        ({"config": {"max_new_tokens": 3, "stop_words": ("b",)}}, "text goes on after a stop text"),
        ({"config": {"max_new_tokens": 3, "logprobs": 1}}, "0 log-probabilities of 3 tokens"),
        ({"counted": 2}, "counts 2 + 2 are not its tokens'"),
        ({"grammar": "choice", "reason": "stop", "tokens": (5, 9), "text": "maybe"}, "does not follow its grammar"),
    ],
)
def test_a_wrong_answer_is_seen(scripts, change, problem):
    from engine_bench.fuzz import Case
    from engine_bench.ledger import Ledger

    answer = {**GOOD, **change}
    ledger = Ledger(frozenset({9}), session_len=64)
    ledger.submitted(Case(Request("a", [1, 2], GenerationConfig(**answer["config"])), answer.get("grammar")))
    made = answer.get("counted", len(answer["tokens"]))
    ledger.take([Output("a", 0, answer["text"], answer["tokens"], (), answer["reason"], 2, made)])
    assert any(problem in found for found in ledger.problems) if problem else ledger.problems == []


def test_logprobs_and_late_outputs_are_checked(scripts):
    from engine_bench.fuzz import Case
    from engine_bench.ledger import Ledger

    ledger = Ledger(frozenset(), session_len=64)
    ledger.submitted(Case(Request("a", [1], GenerationConfig(max_new_tokens=2, logprobs=2))))
    ledger.take([Output("a", 0, "", (4,), (TokenLogprobs(4, -1.0, ((4, -1.0), (3, -2.0))),), None, 1, 1)])
    assert not ledger.problems
    ledger.take([Output("a", 0, "", (4,), (TokenLogprobs(4, -1.0, ((4, -2.0), (3, -1.0))),), "length", 1, 2)])
    ledger.take([Output("a", 0, "", (4,), (), None, 1, 3)])
    assert ["log-probabilities" in ledger.problems[0], "after its end" in ledger.problems[1]] == [True, True]


def test_other_tokens_for_the_same_question_are_counted(scripts):
    from engine_bench.fuzz import Case
    from engine_bench.ledger import Ledger

    ledger = Ledger(frozenset(), session_len=64)
    for name, token, repeats in (("a", 4, None), ("b", 4, "a"), ("c", 5, "a")):
        ledger.submitted(Case(Request(name, [1], GenerationConfig(max_new_tokens=1)), repeats=repeats))
        ledger.take([Output(name, 0, "", (token,), (), "length", 1, 1)])
    assert (ledger.compared, ledger.different, ledger.problems) == (2, 1, [])


def test_what_is_left_behind_is_seen(scripts):
    from engine_bench.soak import left_behind

    engine = tiny_engine()
    assert left_behind(engine) == []
    assert engine.allocator.allocate(3) is not None
    assert left_behind(engine) == ["3 pages did not come back", "not all pages can be had"]
    engine.submit(Request("a", [1], GenerationConfig(max_new_tokens=1)))
    assert "work is left" in left_behind(engine)[0]


def test_a_silent_engine_is_stuck(scripts, monkeypatch):
    import engine_bench.soak
    from engine_bench.soak import Stepper, StuckError, Threaded

    engine = tiny_engine()
    monkeypatch.setattr(engine_bench.soak, "IDLE_STEPS", 3)
    monkeypatch.setattr(engine_bench.soak, "SILENT_SECONDS", 0.01)
    stepper = Stepper(engine)
    assert [stepper.poll() for _ in range(3)] == [[], [], []]
    with pytest.raises(StuckError, match="3 steps gave nothing"):
        stepper.poll()
    runner = EngineRunner(engine)
    with pytest.raises(StuckError, match="no output"):
        Threaded(runner).poll()
    runner.stop()


def test_growth_leaves_the_start_out(scripts):
    from engine_bench.resident import MemoryLog

    log = MemoryLog([(i, i, 100.0 if i < 4 else 500.0 + (i >= 16) * 7) for i in range(20)])
    assert log.growth == 7
    assert MemoryLog([(i, i, 100.0 if i < 4 else 500.0) for i in range(20)]).growth == 0
    assert log.sample(1.0, 3) > 1
