"""Short and long prompts that arrive when they like, not when the engine has room."""

import time
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np

from engine_bench.clock import Clock
from engine_bench.lengths import Job
from engine_bench.measure import percentiles
from jaxdeploy.engine.engine import Engine

LONG_EVERY = 8
"""One prompt in so many is long."""
SHORT = (8, 64)
"""Tokens of short prompts, from and to."""
LOAD = 0.7
"""Requests arrive at this share of the rate that the engine is through with them when they queue."""


def mixed_load(
    engine: Engine, *, count: int, long: int, new: int, seed: int, rate: float | None = None
) -> list[dict[str, Any]]:
    """TTFT and ITL while short prompts and long ones arrive at random (a Poisson process).

    The same requests arrive at the same moments twice: with mixed steps as the engine is set up, then with steps that take as
    many prompt tokens as fit, however long running answers wait for them.

    Args:
        count: requests. new: tokens of each answer.
        long: tokens of the long prompts, one in LONG_EVERY.
        rate: requests per second; None measures what the engine can take and asks for LOAD of it.
    """
    limits = engine.scheduler.limits
    if rate is None:
        rate = LOAD * capacity(engine, requests(engine, max(count // 4, 2 * LONG_EVERY), long, new, seed))
    moments = np.cumsum(np.random.RandomState(seed).exponential(1 / rate, count)).tolist()
    rows = []
    for turn, budget in enumerate((limits.mixed_tokens, limits.prefill_tokens)):
        engine.scheduler.limits = replace(limits, mixed_tokens=budget)
        # Other tokens each time, or the second run would find the first one's pages.
        jobs = requests(engine, count, long, new, seed + 1 + turn)
        clock, names = Clock(engine), []
        before, begun = engine.scheduler.preemptions, time.perf_counter()
        arrive(clock, jobs, moments, names)
        lines = [clock.lines[name] for name in names]
        first = {kind: [line.first for job, line in zip(jobs, lines, strict=True) if (len(job.prompt) == long) == kind]
                 for kind in (False, True)}  # fmt: skip
        rows.append({
            "tokens of a mixed step": budget,
            "requests/s": rate,
            "tokens out/s": clock.made / (time.perf_counter() - begun),
            "long prompt": long,
            **percentiles("TTFT short", first[False]),
            **percentiles("TTFT long", first[True]),
            **percentiles("ITL", [gap for line in lines for gap in line.gaps]),
            "preemptions": engine.scheduler.preemptions - before,
        })  # fmt: skip
    engine.scheduler.limits = limits
    return rows


def requests(engine: Engine, count: int, long: int, new: int, seed: int) -> list[Job]:
    """Requests of random tokens; lengths do not depend on the seed."""
    rng, lengths = np.random.RandomState(seed), np.random.RandomState(0)
    short = [min(int(length), long - 1) for length in lengths.randint(SHORT[0], SHORT[1] + 1, count)]
    sizes = [long if i % LONG_EVERY == LONG_EVERY // 2 else size for i, size in enumerate(short)]
    return [Job(rng.randint(0, engine.config.vocab_size, size).tolist(), new) for size in sizes]


def capacity(engine: Engine, jobs: list[Job]) -> float:
    """Requests per second where there is always one waiting."""
    begun = time.perf_counter()
    Clock(engine).run(jobs, 2 * engine.limits.batch_size)
    return len(jobs) / (time.perf_counter() - begun)


def arrive(clock: Clock, jobs: list[Job], moments: list[float], names: list[str]) -> None:
    """Submit each job at its moment (seconds from now) and run all to their end; ``names`` gets their ids in order.

    A request that arrives while a step runs waits for it, and that counts.
    """
    waiting, begun = deque(zip(jobs, moments, strict=True)), time.perf_counter()
    while waiting or clock.engine.has_work:
        while waiting and begun + waiting[0][1] <= time.perf_counter():
            job, moment = waiting.popleft()
            names.append(clock.submit(job))
            clock.lines[names[-1]].submitted = begun + moment
        if clock.engine.has_work:
            clock.step()
        else:
            time.sleep(max(begun + waiting[0][1] - time.perf_counter(), 0))
