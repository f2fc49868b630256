"""Prefix caching in the engine: pages are shared, tokens stay the same."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from support.tiny_engine import CONFIG, VOCABULARY, AsciiTokenizer, run_all, tiny_engine, tiny_parameters, tokens_of

from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.config.generation import GenerationConfig
from jaxdeploy.config.rope import RopeConfig
from jaxdeploy.engine.engine import Engine
from jaxdeploy.engine.limits import Limits
from jaxdeploy.engine.request import Output, Request

PAGE = 8


@pytest.fixture(scope="module")
def shared_engine() -> Engine:
    return tiny_engine()


@pytest.fixture
def engine(shared_engine):
    """An engine whose index is empty: everything kept is pushed out first."""
    allocator = shared_engine.allocator
    allocator.release(allocator.allocate(allocator.num_pages))
    assert len(allocator.index) == 0
    yield shared_engine
    for request_id in shared_engine.unfinished():
        shared_engine.abort(request_id)
    assert allocator.used_pages == 0


@pytest.fixture(scope="module")
def plain_engine() -> Engine:
    return tiny_engine(enable_prefix_caching=False)


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.RandomState(seed).randint(1, VOCABULARY, length).tolist()


def greedy(max_new_tokens: int = 12, **options) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=max_new_tokens, ignore_eos=True, **options)


def ask(engine: Engine, ids: list[int], config: GenerationConfig | None = None) -> tuple[list[int], int]:
    """Tokens of the answer, and how many of the prompt were cached."""
    engine.submit(Request("a", ids, config or greedy()))
    outputs = run_all(engine)
    return tokens_of(outputs, "a"), outputs[-1].cached_tokens


@pytest.mark.parametrize(("length", "cached"), [(40, 32), (41, 40), (7, 0), (8, 0), (9, 8)])
def test_all_full_pages_but_the_last_tokens_are_found(engine, length, cached):
    ids = prompt(length)
    answer, first = ask(engine, ids)
    assert first == 0
    queried, hit = engine.scheduler.prefix_queried_tokens, engine.scheduler.prefix_hit_tokens
    assert ask(engine, ids) == (answer, cached)
    assert engine.scheduler.prefix_queried_tokens - queried == length
    assert engine.scheduler.prefix_hit_tokens - hit == cached


def test_the_next_turn_finds_the_answer_too(engine, plain_engine):
    ids = prompt(13)
    answer, _ = ask(engine, ids, greedy(20))
    following = [*ids, *answer, *prompt(5, 1)]
    tokens, cached = ask(engine, following)
    assert cached == (len(ids) + len(answer) - 1) // PAGE * PAGE, "the last token of an answer is never fed"
    assert tokens == ask(plain_engine, following)[0]


def test_prompts_that_part_share_what_they_have_in_common(engine, plain_engine):
    head = prompt(20)
    for i in range(4):
        ids = [*head, *prompt(15, 10 + i)]
        tokens, cached = ask(engine, ids)
        assert cached == (16 if i else 0)
        assert tokens == ask(plain_engine, ids)[0]


def test_answers_to_one_prompt_share_its_pages_within_a_step(engine, plain_engine):
    sampling = GenerationConfig(n=3, do_sample=True, top_k=0, temperature=1.0, random_seed=4, ignore_eos=True)
    ids, config = prompt(20), replace(sampling, max_new_tokens=12)
    engine.submit(Request("a", ids, config))
    outputs = engine.step()
    assert engine.allocator.used_pages == 2 + 3 * 1, "two pages in common, one each for the rest"
    outputs += run_all(engine)
    plain_engine.submit(Request("a", ids, config))
    expected = run_all(plain_engine)
    for i in range(3):
        assert tokens_of(outputs, "a", i) == tokens_of(expected, "a", i)
    assert {(o.index, o.cached_tokens) for o in outputs} == {(0, 0), (1, 16), (2, 16)}


def test_penalties_know_the_tokens_that_were_not_fed(engine, plain_engine):
    config = greedy(14, repetition_penalty=1.5, frequency_penalty=0.7)
    ids = prompt(35)
    expected, _ = ask(plain_engine, ids, config)
    assert ask(engine, ids, config) == (expected, 0)
    assert ask(engine, ids, config) == (expected, 32)


def churn(engine: Engine) -> list[list[Output]]:
    """Sixty requests with beginnings in common, some given up, in a pool that is too small."""
    rng = np.random.RandomState(3)
    heads = [prompt(rng.randint(5, 50), seed) for seed in range(4)]
    outputs, aborted = [], set()
    for i in range(60):
        ids = [*heads[rng.randint(4)], *rng.randint(1, VOCABULARY, rng.randint(1, 20)).tolist()]
        config = GenerationConfig(
            n=rng.choice([1, 1, 2]).item(), max_new_tokens=rng.randint(1, 30), do_sample=bool(rng.randint(2)), top_k=0,
            random_seed=i, repetition_penalty=rng.choice([1.0, 1.2]).item(), ignore_eos=True,
        )  # fmt: skip
        engine.submit(Request(str(i), ids, config))
        for _ in range(rng.randint(4)):
            outputs += engine.step()
        if rng.randint(8) == 0:
            aborted.add(str(rng.randint(i + 1)))
            outputs += engine.abort(max(aborted))
    outputs += run_all(engine)
    return [tokens_of(outputs, str(i), n) for i in range(60) for n in range(2) if str(i) not in aborted]


def test_preemption_and_aborts_change_nothing():
    plain, small = (tiny_engine(cache_max_entry_count=18, enable_prefix_caching=on) for on in (False, True))
    assert churn(small) == churn(plain)
    assert small.scheduler.preemptions > 0
    assert small.scheduler.prefix_hit_tokens > 500
    assert small.allocator.used_pages == plain.allocator.used_pages == 0
    assert plain.scheduler.prefix_queried_tokens == 0
    assert small.executor.compile_misses == 0


def test_kept_pages_give_way_to_new_requests(engine):
    for seed in range(12):
        ask(engine, prompt(60, seed))
    assert engine.allocator.free_pages == engine.allocator.num_pages
    assert ask(engine, prompt(60, 11))[1] == 56, "the last prompt is there"
    assert ask(engine, prompt(60, 0))[1] == 0, "the first one had to go"


def test_dynamic_rope_shares_only_between_equal_bases():
    rope = RopeConfig("dynamic", factor=2.0, original_max_position=64)
    config = replace(CONFIG, rope=rope, max_position_embeddings=64)
    options = EngineConfig(
        max_batch_size=1, cache_block_seq_len=PAGE, cache_max_entry_count=64, max_prefill_token_num=16, session_len=128
    )
    params = jax.device_put(tiny_parameters(config), jax.devices()[0])
    limits = Limits.resolve(options, config, platform="cpu")
    both = [
        Engine(config, params, AsciiTokenizer(), replace(options, enable_prefix_caching=on), limits)
        for on in (True, False)
    ]
    ids = prompt(40)
    cached = []
    for new in (10, 24, 25, 30, 25):
        answers = [ask(engine, ids, greedy(new)) for engine in both]
        assert answers[0][0] == answers[1][0]
        cached.append(answers[0][1])
    assert cached == [0, 32, 0, 0, 32], "reaching 50 and 64 tokens is the plain base; 65 and 70 have their own"
