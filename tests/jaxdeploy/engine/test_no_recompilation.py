"""After warm-up nothing compiles, whatever the requests are."""

import jax
import numpy as np
from support.tiny_engine import VOCABULARY, run_all, tiny_engine

from jaxdeploy.config.generation import GenerationConfig
from jaxdeploy.engine.request import Request


def random_request(rng: np.random.RandomState, name: str) -> Request:
    config = GenerationConfig(
        n=rng.choice([1, 1, 2]).item(),
        max_new_tokens=rng.randint(1, 20),
        do_sample=bool(rng.randint(2)),
        temperature=rng.choice([0.0, 0.7, 2.0]).item(),
        top_k=rng.choice([0, 5]).item(),
        top_p=rng.choice([1.0, 0.8]).item(),
        min_p=rng.choice([0.0, 0.1]).item(),
        repetition_penalty=rng.choice([1.0, 1.2]).item(),
        logit_bias={int(t): 1.0 for t in rng.randint(0, VOCABULARY, rng.randint(3))},
        min_new_tokens=rng.randint(3),
        logprobs=rng.choice([None, 0, 20]),
        stop_words=("ab",) if rng.randint(2) else (),
    )
    constraint = AllowAll if rng.randint(4) == 0 else None
    return Request(name, rng.randint(0, VOCABULARY, rng.randint(1, 90)).tolist(), config, constraint=constraint)


class AllowAll:
    """A grammar that allows everything, but by a mask."""

    def mask(self) -> np.ndarray:
        return np.full(VOCABULARY // 32, 2**32 - 1, np.uint32)

    def advance(self, token: int) -> None:
        """Anything goes."""


def test_a_fuzzed_trace_compiles_nothing():
    engine = tiny_engine(cache_max_entry_count=14)
    rng = np.random.RandomState(0)
    shapes = set()
    for i in range(120):
        engine.submit(random_request(rng, str(i)))
        for _ in range(rng.randint(6)):
            engine.step()
        if rng.randint(10) == 0:
            engine.abort(str(rng.randint(i + 1)))
        shapes.add(len(engine.scheduler.running))
    run_all(engine)
    assert engine.executor.compile_misses == 0
    jax.jit(lambda x: x + 1)(np.float32(i))
    assert engine.executor.compile_misses > 0, "anything compiled now would have been seen"
    assert shapes >= {1, 2, 3, 4}, "the trace went through all batch sizes"
    assert engine.scheduler.preemptions > 0
    assert engine.allocator.used_pages == 0
