"""The next step is launched before the last one is read, and nobody can tell from the answers."""

import numpy as np
import pytest
from support.tiny_engine import END, VOCABULARY, run_all, tiny_engine, tokens_of

from jaxdeploy.config.generation import GenerationConfig
from jaxdeploy.engine.engine import Engine
from jaxdeploy.engine.request import Output, Request


@pytest.fixture(scope="module")
def shared_engine() -> Engine:
    return tiny_engine()


@pytest.fixture
def engine(shared_engine):
    yield shared_engine
    assert not shared_engine.has_work
    assert shared_engine.allocator.used_pages == 0


def greedy(max_new_tokens: int = 6, **options) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=max_new_tokens, ignore_eos=True, **options)


class OddTokens:
    """Allows tokens of one parity, which changes with each token."""

    def __init__(self):
        self.made = 0

    def mask(self) -> np.ndarray:
        return np.full(VOCABULARY // 32, 0x55555555 << self.made % 2, np.uint32)

    def advance(self, token: int) -> None:
        assert token % 2 == self.made % 2
        self.made += 1


def test_a_step_is_launched_before_the_last_one_is_read(engine):
    steps = engine.executor.steps
    engine.submit(Request("a", [1, 2, 3], greedy(6)))
    assert engine.step() == [], "nothing has run before"
    assert engine.executor.steps - steps == 1
    outputs = engine.step()
    assert len(tokens_of(outputs, "a")) == 1
    assert engine.executor.steps - steps == 2
    outputs += run_all(engine)
    assert len(tokens_of(outputs, "a")) == 6
    assert engine.executor.steps - steps == 6, "an answer that ends by its length is in no further step"


def test_what_runs_beyond_an_end_is_dropped(engine):
    steps = engine.executor.steps
    engine.submit(Request("a", [1, 2, 3], GenerationConfig(max_new_tokens=50, logit_bias={END: 100.0})))
    outputs = run_all(engine)
    assert [(o.token_ids, o.finish_reason) for o in outputs] == [((END,), "stop")]
    assert engine.executor.steps - steps == 2, "the second step ran for nothing"


def test_drain_reads_without_launching(engine):
    engine.submit(Request("a", [1, 2, 3], greedy(2)))
    engine.step()
    steps = engine.executor.steps
    assert len(tokens_of(engine.drain(), "a")) == 1
    assert engine.drain() == []
    assert engine.executor.steps == steps
    assert len(tokens_of(run_all(engine), "a")) == 1


def test_grammar_rows_wait_and_nobody_else_does(engine):
    steps = engine.executor.steps
    engine.submit(Request("free", [1, 2, 3], greedy(12)))
    engine.submit(Request("bound", [4, 5], greedy(6), constraint=OddTokens))
    outputs = run_all(engine)
    assert len(tokens_of(outputs, "free")) == 12
    assert len(tokens_of(outputs, "bound")) == 6
    assert engine.executor.steps - steps == 12, (
        "the free answer had a token in each step, the other in every second one"
    )


def trace(engine: Engine, *, overlapped: bool) -> list[Output]:
    """Requests of all kinds, some aborted, in a pool that is too small."""
    rng = np.random.RandomState(5)
    outputs: list[Output] = []
    for i in range(50):
        config = GenerationConfig(
            n=rng.choice([1, 2]).item(), max_new_tokens=rng.randint(1, 40), do_sample=bool(rng.randint(2)), top_k=0,
            random_seed=i, repetition_penalty=rng.choice([1.0, 1.2]).item(), ignore_eos=bool(rng.randint(2)),
            stop_words=("a",) if rng.randint(3) == 0 else (), logprobs=rng.choice([None, 2]),
            logit_bias={END: 3.0} if rng.randint(2) else {},
        )  # fmt: skip
        constraint = OddTokens if rng.randint(4) == 0 else None
        engine.submit(Request(str(i), rng.randint(1, VOCABULARY, rng.randint(1, 60)).tolist(), config, constraint))
        for _ in range(rng.randint(4)):
            outputs += engine.step()
            outputs += [] if overlapped else engine.drain()
    while engine.has_work:
        outputs += engine.step()
        outputs += [] if overlapped else engine.drain()
    assert engine.scheduler.preemptions > 0
    return outputs


def test_answers_are_those_of_a_serial_engine():
    serial, overlapped = (trace(tiny_engine(cache_max_entry_count=18), overlapped=on) for on in (False, True))

    def answers(outputs: list[Output]) -> dict:
        found: dict = {}
        for o in outputs:
            tokens, text, logprobs, _ = found.get((o.request_id, o.index), ((), "", (), None))
            chosen = tuple((entry.token, round(entry.logprob, 3)) for entry in o.logprobs)
            found[o.request_id, o.index] = (tokens + o.token_ids, text + o.text, logprobs + chosen, o.finish_reason)
        return found

    assert answers(serial) == answers(overlapped)
    reasons = {reason for *_, reason in answers(serial).values()}
    assert reasons == {"stop", "length"}


def test_an_abort_while_a_step_runs_frees_everything():
    engine = tiny_engine(cache_max_entry_count=18)
    for i in range(6):
        engine.submit(Request(str(i), [i + 1] * 20, greedy(60)))
    for _ in range(9):
        engine.step()
    ended = [output for i in range(6) for output in engine.abort(str(i))]
    assert {output.finish_reason for output in ended} == {"abort"}
    assert engine.allocator.used_pages == 0
    assert not engine.has_work
    assert engine.step() == []
    engine.submit(Request("next", [1] * 20, greedy(5)))
    assert len(tokens_of(run_all(engine), "next")) == 5
