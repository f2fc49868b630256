"""The engine's promises, on a tiny model: exact tokens, stops, seeds, logprobs, aborts, limits, grammar masks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.plain_decoder import plain_logits
from support.tiny_engine import CONFIG, END, VOCABULARY, run_all, text_of, tiny_engine, tokens_of

from jaxdeploy.config.generation import GenerationConfig
from jaxdeploy.engine.engine import Engine
from jaxdeploy.engine.request import Request
from jaxdeploy.errors import PromptTooLongError, RequestError


@pytest.fixture(scope="module")
def shared_engine() -> Engine:
    return tiny_engine()


@pytest.fixture
def engine(shared_engine):
    yield shared_engine
    for request_id in shared_engine.unfinished():
        shared_engine.abort(request_id)
    assert shared_engine.allocator.used_pages == 0, "every page comes back"


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.RandomState(seed).randint(1, VOCABULARY, length).tolist()


def greedy(max_new_tokens: int = 12, **options) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=max_new_tokens, ignore_eos=True, **options)


def sampled(max_new_tokens: int = 12, **options) -> GenerationConfig:
    defaults = {"do_sample": True, "temperature": 1.0, "top_k": 0, "ignore_eos": True}
    return GenerationConfig(max_new_tokens=max_new_tokens, **{**defaults, **options})


@pytest.fixture(scope="module")
def recompute(shared_engine):
    """Logits after each token of a sequence, by full recompute."""
    run = jax.jit(lambda params, tokens: plain_logits(CONFIG, params, tokens, 128))

    def logits(tokens: list[int]) -> np.ndarray:
        padded = jnp.asarray(tokens + [0] * (128 - len(tokens)), jnp.int32)
        return np.asarray(run(shared_engine.executor.params, padded))[: len(tokens)]

    return logits


def assert_greedy(recompute, prompt_ids: list[int], answer: list[int]) -> None:
    """By induction on the tokens this is what a full-recompute greedy loop would have made."""
    best = recompute(prompt_ids + answer).argmax(axis=-1)
    assert answer == best[len(prompt_ids) - 1 : -1].tolist()


def test_ragged_batch_equals_full_recompute(engine, recompute):
    lengths = (1, 7, 8, 9, 31, 40, 64, 77, 3, 16)
    for i, length in enumerate(lengths):
        engine.submit(Request(str(i), prompt(length, i), greedy()))
    outputs = run_all(engine)
    for i, length in enumerate(lengths):
        assert_greedy(recompute, prompt(length, i), tokens_of(outputs, str(i)))


def test_preemption_changes_no_token(recompute):
    small = tiny_engine(cache_max_entry_count=14)
    for i in range(6):
        small.submit(Request(str(i), prompt(20 + i, i), greedy(40)))
    outputs = run_all(small)
    assert small.scheduler.preemptions > 0, "the pool was meant to be too small"
    for i in range(6):
        answer = tokens_of(outputs, str(i))
        assert len(answer) == 40
        assert_greedy(recompute, prompt(20 + i, i), answer)
    assert small.allocator.used_pages == 0


def test_preemption_keeps_sampled_tokens_and_penalties():
    config = sampled(40, random_seed=5, repetition_penalty=1.3, frequency_penalty=0.5)
    answers = []
    for pages in (14, 64):
        some = tiny_engine(cache_max_entry_count=pages)
        for i in range(4):
            some.submit(Request(str(i), prompt(20 + i, i), config))
        outputs = run_all(some)
        assert (some.scheduler.preemptions > 0) == (pages == 14)
        answers.append([tokens_of(outputs, str(i)) for i in range(4)])
    assert answers[0] == answers[1]


def test_same_seed_same_tokens_whatever_the_neighbours(engine):
    request = Request("a", prompt(9), sampled(random_seed=7, top_p=0.9, min_p=0.01))
    engine.submit(request)
    alone = tokens_of(run_all(engine), "a")
    for i in range(3):
        engine.submit(Request(str(i), prompt(30, i), sampled(random_seed=i, top_k=3, presence_penalty=1.0)))
    engine.submit(request)
    assert tokens_of(run_all(engine), "a") == alone
    engine.submit(Request("b", prompt(9), sampled(random_seed=8)))
    assert tokens_of(run_all(engine), "b") != alone


def test_n_answers_differ_and_repeat(engine):
    answers = []
    for _ in range(2):
        engine.submit(Request("a", prompt(5), sampled(n=3, random_seed=1)))
        outputs = run_all(engine)
        answers.append([tokens_of(outputs, "a", i) for i in range(3)])
    assert answers[0] == answers[1]
    assert len({tuple(answer) for answer in answers[0]}) == 3


def test_requests_without_seed_differ(engine):
    for name in "ab":
        engine.submit(Request(name, prompt(5), sampled(n=2)))
    outputs = run_all(engine)
    answers = {tuple(tokens_of(outputs, name, i)) for name in "ab" for i in range(2)}
    assert len(answers) == 4


def test_end_token_and_stop_tokens_end_the_answer(engine):
    engine.submit(Request("free", prompt(6), greedy(30)))
    free = tokens_of(run_all(engine), "free")
    stop = free[4]
    first = free.index(stop)
    engine.submit(Request("a", prompt(6), greedy(30, stop_token_ids=(stop,))))
    outputs = run_all(engine)
    assert tokens_of(outputs, "a") == free[: first + 1]
    assert text_of(outputs, "a") == "".join(map(chr, free[:first])), "the end token is no text"
    assert [o.finish_reason for o in outputs if o.finish_reason] == ["stop"]


def test_model_end_token_ends_unless_ignored(engine):
    force_end = {END: 100.0}
    engine.submit(Request("a", prompt(6), GenerationConfig(max_new_tokens=5, logit_bias=force_end)))
    engine.submit(Request("b", prompt(6), GenerationConfig(max_new_tokens=5, logit_bias=force_end, ignore_eos=True)))
    engine.submit(Request("c", prompt(6), GenerationConfig(max_new_tokens=5, logit_bias=force_end, min_new_tokens=3)))
    outputs = run_all(engine)
    assert tokens_of(outputs, "a") == [END]
    assert tokens_of(outputs, "b") == [END] * 5
    answer = tokens_of(outputs, "c")
    assert END not in answer[:3]
    assert answer[3:] == [END]


def test_stop_text_is_found_across_tokens(engine):
    engine.submit(Request("free", prompt(6), greedy(30)))
    text = text_of(run_all(engine), "free")
    stop = text[9:12]
    cut = text.index(stop)
    engine.submit(Request("a", prompt(6), greedy(30, stop_words=(stop,))))
    engine.submit(Request("b", prompt(6), greedy(30, stop_words=(stop,), include_stop_str_in_output=True)))
    outputs = run_all(engine)
    assert text_of(outputs, "a") == text[:cut]
    assert text_of(outputs, "b") == text[: cut + len(stop)]
    assert {o.finish_reason for o in outputs if o.finish_reason} == {"stop"}


def test_logprobs_are_the_models_own(engine, recompute):
    ids = prompt(10)
    engine.submit(Request("a", ids, sampled(8, random_seed=3, logprobs=5, temperature=0.5, presence_penalty=1.5)))
    engine.submit(Request("b", prompt(4), greedy(8)))
    outputs = run_all(engine)
    answer = tokens_of(outputs, "a")
    reported = [entry for o in outputs if o.request_id == "a" for entry in o.logprobs]
    logits = recompute(ids + answer)[len(ids) - 1 : -1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    assert [entry.token for entry in reported] == answer
    for row, entry in zip(expected, reported, strict=True):
        assert math.isclose(entry.logprob, row[entry.token], abs_tol=1e-4)
        best = np.sort(row)[::-1][:5]
        np.testing.assert_allclose([value for _, value in entry.top], best, atol=1e-4)
    assert all(not o.logprobs for o in outputs if o.request_id == "b")


def test_bad_tokens_and_bias(engine):
    engine.submit(Request("free", prompt(6), greedy(8)))
    free = tokens_of(run_all(engine), "free")
    engine.submit(Request("a", prompt(6), greedy(8, bad_token_ids=(free[0],))))
    engine.submit(Request("b", prompt(6), greedy(8, logit_bias={42: 1000.0})))
    outputs = run_all(engine)
    assert free[0] not in tokens_of(outputs, "a")
    assert tokens_of(outputs, "b") == [42] * 8


def test_repetition_penalty_covers_the_prompt(engine, recompute):
    ids = prompt(12)
    engine.submit(Request("a", ids, greedy(6, repetition_penalty=1e6)))
    answer = tokens_of(run_all(engine), "a")
    logits = recompute(ids + answer)
    for i, token in enumerate(answer):
        row = logits[len(ids) - 1 + i].astype(np.float64)
        seen = list({*ids, *answer[:i]})
        row[seen] = np.where(row[seen] < 0, row[seen] * 1e6, row[seen] / 1e6)
        assert token == row.argmax()


def test_abort_frees_pages_at_once(engine):
    engine.submit(Request("a", prompt(40), greedy(60)))
    engine.submit(Request("waits", prompt(3), greedy(60, n=5)))
    for _ in range(4):
        engine.step()
    assert engine.allocator.used_pages > 0
    ended = engine.abort("a") + engine.abort("waits")
    assert {o.finish_reason for o in ended} == {"abort"}
    assert len(ended) == 6
    assert engine.allocator.used_pages == 0
    assert not engine.has_work
    assert engine.abort("a") == []


def test_answer_ends_at_the_context(engine):
    engine.submit(Request("a", prompt(120), greedy(None)))
    outputs = run_all(engine)
    assert len(tokens_of(outputs, "a")) == 8
    assert outputs[-1].finish_reason == "length"


def test_requests_that_cannot_run_are_refused(engine):
    with pytest.raises(PromptTooLongError, match=r"128 tokens.*context of 128"):
        engine.submit(Request("a", prompt(128), greedy()))
    with pytest.raises(RequestError, match="token id 128 in prompt"):
        engine.submit(Request("a", [128], greedy()))
    with pytest.raises(RequestError, match="no tokens"):
        engine.submit(Request("a", [], greedy()))
    with pytest.raises(RequestError, match="-1 in logit_bias"):
        engine.submit(Request("a", [1], greedy(logit_bias={-1: 1.0})))
    engine.submit(Request("a", [1], greedy()))
    with pytest.raises(RequestError, match="'a' is in flight"):
        engine.submit(Request("a", [1], greedy()))


class OnlyTokens:
    """Allows one token at each place."""

    def __init__(self, wanted: list[int]):
        self.wanted = wanted
        self.seen: list[int] = []

    def mask(self) -> np.ndarray | None:
        if len(self.seen) >= len(self.wanted):
            return None
        words = np.zeros(VOCABULARY // 32, np.uint32)
        token = self.wanted[len(self.seen)]
        words[token // 32] = 1 << (token % 32)
        return words

    def advance(self, token: int) -> None:
        self.seen.append(token)


def test_a_grammar_that_ends_lets_go(engine):
    config = greedy(8)
    engine.submit(Request("bound", prompt(5), config, constraint=lambda: OnlyTokens([5, 99])))
    answer = tokens_of(run_all(engine), "bound")
    engine.submit(Request("free", [*prompt(5), 5, 99], greedy(6)))
    assert answer == [5, 99, *tokens_of(run_all(engine), "free")]


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_grammar_masks_bind_only_their_row(engine, temperature):
    config = sampled(6, temperature=temperature, random_seed=2)
    engine.submit(Request("free", prompt(5), config))
    free = tokens_of(run_all(engine), "free")
    wanted = [5, 99, 127, 31, 64, 5]
    engine.submit(Request("free", prompt(5), config))
    engine.submit(Request("bound", prompt(5), config, constraint=lambda: OnlyTokens(wanted)))
    outputs = run_all(engine)
    assert tokens_of(outputs, "bound") == wanted
    assert tokens_of(outputs, "free") == free
