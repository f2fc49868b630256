"""Prompts and answers share steps: neither waits for the other."""

from dataclasses import replace

import numpy as np
import pytest
from support.tiny_engine import CONFIG, VOCABULARY, run_all, tiny_engine, tokens_of

from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.config.generation import GenerationConfig
from jaxdeploy.engine.buckets import Buckets
from jaxdeploy.engine.engine import Engine
from jaxdeploy.engine.limits import Limits
from jaxdeploy.engine.request import Request
from jaxdeploy.engine.scheduler import FED_FOR_EACH, StepPlan


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine(num_tokens_per_iter=8)


@pytest.fixture
def plans(engine, monkeypatch) -> list[StepPlan]:
    """Every plan that is launched from now on."""
    found: list[StepPlan] = []
    launch = engine.executor.launch

    def noting(plan: StepPlan):
        found.append(plan)
        return launch(plan)

    monkeypatch.setattr(engine.executor, "launch", noting)
    return found


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.RandomState(seed).randint(1, VOCABULARY, length).tolist()


def greedy(max_new_tokens: int) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=max_new_tokens, ignore_eos=True)


def counts(plan: StepPlan) -> dict[str, int]:
    return {row.sequence.request.id: row.count for row in plan.rows}


def test_a_long_prompt_stops_nobody(engine, plans):
    engine.submit(Request("runs", prompt(5), greedy(40)))
    outputs = engine.step()
    engine.submit(Request("long", prompt(90, 1), greedy(4)))
    outputs += run_all(engine)
    shared = [counts(plan) for plan in plans if "long" in counts(plan)]
    assert [c.get("long") for c in shared[:13]] == [7] * 12 + [6], (
        "eight tokens a step, one of them the running answer's"
    )
    assert all(c["runs"] == 1 for c in shared)
    assert len(plans) == 40, "the running answer is in every step after its prompt's"
    assert engine.executor.compile_misses == 0
    for name, length, seed, new in (("runs", 5, 0, 40), ("long", 90, 1, 4)):
        engine.submit(Request("alone", prompt(length, seed), greedy(new)))
        assert tokens_of(outputs, name) == tokens_of(run_all(engine), "alone")


def test_prompts_get_a_multiple_of_what_answers_get(engine, plans):
    for i in range(3):
        engine.submit(Request(f"runs {i}", prompt(2, 20 + i), greedy(30)))
    engine.step()
    assert sum(plans[0].rows[i].count for i in range(3)) == 6
    engine.scheduler.limits = replace(engine.scheduler.limits, mixed_tokens=1)
    engine.submit(Request("long", prompt(30, 9), greedy(2)))
    run_all(engine)
    shared = [counts(plan) for plan in plans if "long" in counts(plan) and len(plan.rows) == 4]
    assert [c["long"] for c in shared][:4] == [3 * (FED_FOR_EACH - 1)] * 3 + [3]
    engine.scheduler.limits = replace(engine.scheduler.limits, mixed_tokens=8)


def test_without_answers_prompts_take_the_whole_step(engine, plans):
    engine.submit(Request("a", prompt(50, 30), greedy(1)))
    engine.submit(Request("b", prompt(20, 31), greedy(1)))
    run_all(engine)
    assert [counts(plan) for plan in plans] == [{"a": 16, "b": 16}, {"a": 28, "b": 4}, {"a": 6}]
    assert not any(plan.decode for plan in plans)


def test_short_prompts_pass_long_ones(engine, plans):
    """The first token of a short prompt comes while the long ones before it are still fed, of which one goes on at half speed."""
    for name, length in (("first", 100), ("second", 90), ("short", 10), ("third", 40), ("shorter", 3)):
        engine.submit(Request(name, prompt(length, 60 + length), greedy(1)))
    outputs = run_all(engine)
    assert [o.request_id for o in outputs if o.finish_reason] == ["short", "shorter", "first", "second", "third"]
    assert counts(plans[0]) == {"short": 10, "shorter": 3, "first": 19}, (
        "32 tokens, no more than 16 of them out of turn"
    )
    assert [counts(plan) for plan in plans[1:4]] == [{"first": 32}, {"first": 32}, {"first": 17, "second": 15}]
    assert all(sum(counts(plan).values()) == 32 for plan in plans[:-1])
    assert engine.allocator.used_pages == 0


def test_short_prompts_take_no_more_than_half(engine, plans):
    engine.submit(Request("long", prompt(100, 70), greedy(1)))
    for i in range(3):
        engine.submit(Request(f"short {i}", prompt(12, 71 + i), greedy(1)))
    run_all(engine)
    assert [counts(plan) for plan in plans[:3]] == [
        {"short 0": 12, "short 1": 4, "long": 16},
        {"short 1": 8, "short 2": 8, "long": 16},
        {"short 2": 4, "long": 28},
    ]


def test_a_step_never_holds_a_sequence_twice_or_too_much(engine, plans):
    rng = np.random.RandomState(3)
    for i in range(60):
        engine.submit(Request(str(i), prompt(rng.choice([3, 10, 25, 31, 33, 90]), 100 + i), greedy(rng.randint(1, 5))))
        for _ in range(rng.randint(4)):
            engine.step()
    run_all(engine)
    for plan in plans:
        assert len({row.sequence for row in plan.rows}) == len(plan.rows)
        answering = sum(row.start >= row.sequence.prefill_target for row in plan.rows)
        assert sum(row.count for row in plan.rows) <= (max(8, FED_FOR_EACH * answering) if answering else 32)
        assert all(row.count > 0 for row in plan.rows)


def test_a_long_prompt_behind_another_finds_its_pages(engine):
    """Long prompts still wait for each other: the second one is admitted when the first one's pages are known."""
    shared = prompt(64, 80)
    for i in range(2):
        engine.submit(Request(f"long {i}", shared + prompt(20, 81 + i), greedy(1)))
    outputs = run_all(engine)
    assert {o.request_id: o.cached_tokens for o in outputs if o.finish_reason} == {"long 0": 0, "long 1": 64}


def test_nobody_starves_under_a_stream_of_short_requests(engine):
    """A long prompt that comes in the middle is answered although new short requests never stop coming."""
    for i in range(4):
        engine.submit(Request(f"s{i}", prompt(4, 40 + i), greedy(6)))
    engine.submit(Request("long", prompt(100, 50), greedy(3)))
    ended, step = set(), 4
    for _ in range(60):
        for output in engine.step():
            if output.finish_reason:
                ended.add(output.request_id)
                engine.submit(Request(f"s{step}", prompt(4, 40 + step), greedy(6)))
                step += 1
    assert "long" in ended
    for request_id in engine.unfinished():
        engine.abort(request_id)
    assert engine.allocator.used_pages == 0


def test_a_step_full_of_answers_has_room_for_prompts():
    options = EngineConfig(max_batch_size=64, max_prefill_token_num=16)
    limits = Limits.resolve(options, CONFIG, platform="cpu")
    assert limits.prefill_tokens == 128
    assert limits.mixed_tokens <= limits.prefill_tokens
    assert Limits.resolve(EngineConfig(session_len=20), CONFIG, platform="gpu").prefill_tokens == 20 * 128
    assert Limits.resolve(EngineConfig(num_tokens_per_iter=9999), CONFIG, platform="gpu").mixed_tokens == 4096


def test_steps_of_prompts_alone_in_shapes_of_their_own_make_the_same_tokens(engine, monkeypatch):
    """As on a GPU, and with drafts: the same requests by an engine that has those shapes and by one that has not."""
    of = Buckets.of
    monkeypatch.setattr("jaxdeploy.engine.buckets.LEAST_PROMPT_TOKENS", 16)
    monkeypatch.setattr("jaxdeploy.engine.buckets.PROMPT_GROWTH", 4)
    monkeypatch.setattr(Buckets, "of", lambda **options: of(**options | {"prompts_alone": True}))
    other = tiny_engine(num_tokens_per_iter=8, num_speculative_tokens=3)
    alone = {
        bucket for bucket in other.executor.programs.models if not (bucket.mixed or bucket.decode or bucket.checks)
    }
    assert alone
    used = set()
    fit = Buckets.fit
    monkeypatch.setattr(Buckets, "fit", lambda self, *a, **k: used.add(found := fit(self, *a, **k)) or found)
    made = []
    for each in (engine, other):
        for i, length in enumerate((40, 3, 25, 55, 2)):
            each.submit(Request(str(i), prompt(length, 200 + i) * 2, greedy(9)))
        outputs = run_all(each)
        made.append([tokens_of(outputs, str(i)) for i in range(5)])
    assert made[0] == made[1]
    assert used & alone
    assert other.executor.compile_misses == 0
