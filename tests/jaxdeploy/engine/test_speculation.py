"""Guessed tokens: the same answers in fewer steps."""

import numpy as np
import pytest
from support.tiny_engine import END, VOCABULARY, run_all, tiny_engine, tokens_of

from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.config.generation import GenerationConfig
from jaxdeploy.engine.engine import Engine
from jaxdeploy.engine.ngram_drafter import PAUSE_TOKENS, NgramDrafter
from jaxdeploy.engine.request import Output, Request
from jaxdeploy.engine.scheduler import PlannedRow
from jaxdeploy.errors import ConfigError

DRAFT = 4
PAGES = 18
"""Room for one long answer, and not for all of ``trace``."""


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine(cache_max_entry_count=PAGES, num_speculative_tokens=DRAFT)


@pytest.fixture(scope="module")
def plain_engine() -> Engine:
    return tiny_engine(cache_max_entry_count=PAGES)


def test_the_longest_known_end_is_followed():
    drafter = NgramDrafter()
    assert drafter.propose([1, 2, 3], 4) == ()
    text = [1, 2, 3, 7, 8, 9, 2, 3, 5, 6, 1, 2, 3]
    assert drafter.propose(text, 4) == (7, 8, 9, 2), "behind 1 2 3, though 2 3 came again later"
    assert drafter.propose([*text, 5, 6], 3) == (1, 2, 3), "behind 5 6: the text that came with it is known"
    assert drafter.propose([*text, 5, 6, 99], 3) == ()
    assert drafter.propose([*text, 5, 6, 99, 9, 2], 9) == (3, 5, 6, 1, 2, 3, 5, 6, 99)


def test_bad_drafts_pause():
    drafter, length = NgramDrafter(), 100
    for _ in range(20):
        drafter.judge(4, 4, length)
    assert drafter.is_active(length)
    judged = 0
    while drafter.is_active(length):
        drafter.judge(4, 0, length)
        judged += 1
    assert 2 <= judged <= 10
    assert not drafter.is_active(length + PAUSE_TOKENS - 1)
    assert drafter.is_active(length + PAUSE_TOKENS)


def test_a_draft_stands_up_to_its_first_error():
    row = PlannedRow(None, 0, 4, samples=True, made=0, draft=(5, 6, 7))  # pyright: ignore[reportArgumentType]
    assert row.places == 4
    assert row.stands([5, 6, 7, 8]) == [5, 6, 7, 8]
    assert row.stands([5, 9, 7, 8]) == [5, 9]
    assert row.stands([1, 6, 7, 8]) == [1]


def test_an_answer_that_repeats_itself_takes_fewer_steps(engine, plain_engine):
    config, steps, answers = GenerationConfig(max_new_tokens=100, ignore_eos=True), [], []
    for some in (engine, plain_engine):
        before = some.executor.steps
        some.submit(Request("a", [40, 41] * 10, config))
        answers.append(tokens_of(run_all(some), "a"))
        steps.append(some.executor.steps - before)
    assert answers[0] == answers[1]
    assert len(answers[0]) == 100
    assert steps[1] == 100
    assert steps[0] < 70, "this model soon says the same again and again"
    assert engine.accepted_tokens == 100 - steps[0]
    assert engine.allocator.used_pages == 0


def trace(engine: Engine) -> dict[tuple[str, int], tuple]:
    """Answers of all kinds, some given up, in a pool that is too small: tokens, text and reason of each."""
    rng = np.random.RandomState(8)
    outputs: list[Output] = []
    aborted = {7, 20}
    for i in range(36):
        config = GenerationConfig(
            n=rng.choice([1, 2]).item(), max_new_tokens=rng.randint(1, 70), do_sample=bool(rng.randint(2)),
            temperature=0.4, top_k=rng.choice([0, 5]).item(), top_p=rng.choice([1.0, 0.9]).item(), random_seed=i,
            ignore_eos=bool(rng.randint(2)), stop_words=("ab", "q") if rng.randint(3) == 0 else (),
            stop_token_ids=(3,) if rng.randint(3) == 0 else (), logprobs=rng.choice([None, None, 2]),
            repetition_penalty=rng.choice([1.0, 1.0, 1.2]).item(),
        )  # fmt: skip
        pattern = [[40, 41], [100], [9, 10, 11, 12], [77, 3], rng.randint(1, VOCABULARY, 8).tolist()][rng.randint(5)]
        engine.submit(Request(str(i), (pattern * 60)[: rng.randint(1, 60)], config))
        for _ in range(rng.randint(5)):
            outputs += engine.step()
        if i in aborted:
            engine.abort(str(i))
    outputs += run_all(engine)
    found: dict = {}
    for o in outputs:
        tokens, text, _ = found.get((o.request_id, o.index), ((), "", None))
        found[o.request_id, o.index] = (tokens + o.token_ids, text + o.text, o.finish_reason)
    return {key: value for key, value in found.items() if int(key[0]) not in aborted}


def test_greedy_and_sampled_answers_stay_the_same():
    plain, drafting = (tiny_engine(cache_max_entry_count=PAGES, num_speculative_tokens=most) for most in (0, DRAFT))
    expected, found = trace(plain), trace(drafting)
    assert found == expected
    assert {reason for *_, reason in found.values()} == {"stop", "length"}
    assert drafting.scheduler.preemptions > 0
    assert drafting.drafted_tokens > drafting.accepted_tokens > 40
    assert plain.drafted_tokens == 0
    assert drafting.allocator.used_pages == 0
    assert drafting.executor.compile_misses == 0


def test_an_end_within_a_draft_ends_the_answer(engine):
    """What was guessed behind an end token is no part of the answer, however right."""
    pattern = [9, 10, 11, 12]
    engine.submit(Request("free", pattern * 6, GenerationConfig(max_new_tokens=60, ignore_eos=True)))
    free = tokens_of(run_all(engine), "free")
    stop = free[40]
    config = GenerationConfig(max_new_tokens=60, ignore_eos=True, stop_token_ids=(stop,))
    engine.submit(Request("a", pattern * 6, config))
    outputs = run_all(engine)
    assert tokens_of(outputs, "a") == free[: free.index(stop) + 1]
    assert outputs[-1].finish_reason == "stop"
    assert END not in tokens_of(outputs, "a")


def test_a_negative_number_is_refused():
    with pytest.raises(ConfigError, match="num_speculative_tokens=-1"):
        EngineConfig(num_speculative_tokens=-1)
