"""What is measured of an engine."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np

from engine_bench.clock import Clock
from engine_bench.lengths import Job, jobs
from jaxdeploy.engine.engine import Engine

TRACED_STEPS = 16


def decode(
    engine: Engine,
    batch: int,
    *,
    prompt: int,
    new: int,
    seed: int,
    trace: Callable[[], AbstractContextManager] = nullcontext,
) -> dict[str, float]:
    """Decode alone, on a full batch: from when the last answer has begun until the first one ends.

    Args:
        batch: answers at once. prompt, new: tokens in and out of each.
        trace: profiles a few steps in the middle.
    """
    clock, vocabulary = Clock(engine), engine.config.vocab_size
    prompts_first(engine)
    for job in jobs("fixed", batch, prompt=prompt, new=new, vocabulary=vocabulary, seed=seed):
        clock.submit(job)
    begun = time.perf_counter()
    while not all(line.tokens for line in clock.lines.values()):
        clock.step()
    prefilled = time.perf_counter()
    made, executor = clock.made, engine.executor
    steps, uploads, host = executor.steps, executor.uploads, dict(executor.host_seconds)
    while engine.has_work and not clock.step():
        pass
    ended = time.perf_counter()
    elapsed, ran = ended - prefilled, max(executor.steps - steps, 1)
    spent = {name: seconds - host[name] for name, seconds in executor.host_seconds.items()}
    found = {
        "batch": batch,
        "decode tokens/s": (clock.made - made) / elapsed,
        "ms/step": 1e3 * elapsed / ran,
        "host us/step": 1e6 * (elapsed - spent.pop("wait")) / ran,
        **{f"{name} us/step": 1e6 * seconds / ran for name, seconds in spent.items()},
        "uploads": executor.uploads - uploads,
        "steps": ran,
        "prefill tokens/s": batch * prompt / (prefilled - begun),
    }
    clock.finish()
    if trace is not nullcontext:
        for job in jobs("fixed", batch, prompt=32, new=3 * TRACED_STEPS, vocabulary=vocabulary, seed=seed + 1):
            clock.submit(job)
        while not all(line.tokens for line in clock.lines.values()):
            clock.step()
        with trace():
            for _ in range(TRACED_STEPS):
                clock.step()
        clock.finish()
    return found


def prefill(engine: Engine, length: int, *, seed: int, repeats: int) -> dict[str, float]:
    """Milliseconds from an idle engine's ``submit`` to the first token, over prompts of ``length`` tokens."""
    times = []
    for repeat in range(repeats + 1):  # the first one warms up
        clock = Clock(engine)
        (job,) = jobs("fixed", 1, prompt=length, new=1, vocabulary=engine.config.vocab_size, seed=seed + repeat)
        name = clock.submit(job)
        clock.finish()
        times.append(clock.lines[name].first)
    times = times[1:] or times
    return {"prompt": length, "median ms": 1e3 * float(np.median(times)), "least ms": 1e3 * min(times)}


def load(engine: Engine, requests: list[Job], concurrency: int) -> dict[str, float]:
    """A stream of requests, ``concurrency`` at a time: throughput, TTFT and ITL."""
    clock = Clock(engine)
    begun = time.perf_counter()
    clock.run(requests, concurrency)
    elapsed = time.perf_counter() - begun
    lines = list(clock.lines.values())
    return {
        "concurrency": concurrency,
        "requests/s": len(requests) / elapsed,
        "tokens in/s": sum(len(job.prompt) for job in requests) / elapsed,
        "tokens out/s": clock.made / elapsed,
        **percentiles("TTFT", [line.first for line in lines]),
        **percentiles("ITL", [gap for line in lines for gap in line.gaps]),
        "preemptions": engine.scheduler.preemptions,
    }


def stall(engine: Engine, streams: int, *, long: int, every: int, new: int, seed: int) -> dict[str, float]:
    """What running answers feel of long prompts: the time between their tokens while one arrives every so many steps.

    Args:
        streams: answers that run, ``new`` tokens each.
        long: tokens of the prompts that disturb them. every: engine steps from one of them to the next.
    """
    clock, vocabulary = Clock(engine), engine.config.vocab_size
    short = [clock.submit(job) for job in jobs("fixed", streams, prompt=32, new=new, vocabulary=vocabulary, seed=seed)]
    while not all(line.tokens for line in clock.lines.values()):
        clock.step()
    begun, made = time.perf_counter(), clock.made
    disturbing = [
        Job(job.prompt, 4)
        for job in jobs("fixed", new // every, prompt=long, new=4, vocabulary=vocabulary, seed=seed + 1)
    ]
    names, step = [], 0
    while engine.has_work:
        if step % every == 0 and disturbing:
            names.append(clock.submit(disturbing.pop()))
        clock.step()
        step += 1
    elapsed = time.perf_counter() - begun
    gaps = [gap for name in short for gap in clock.lines[name].gaps]
    return {
        "streams": streams,
        "long prompt": long,
        "tokens/s": (clock.made - made) / elapsed,
        **percentiles("ITL", gaps),
        **percentiles("TTFT long", [clock.lines[name].first for name in names]),
    }


def prompts_first(engine: Engine) -> None:
    """Let steps hold as many prompt tokens as they can, whoever waits: a batch is full early, and decode alone can be measured."""
    limits = engine.scheduler.limits
    engine.scheduler.limits = replace(limits, mixed_tokens=limits.prefill_tokens)


def percentiles(name: str, seconds: list[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum in milliseconds."""
    if not seconds:
        return {}
    middle, high = np.percentile(seconds, [50, 99])
    return {f"{name} p50 ms": 1e3 * middle, f"{name} p99 ms": 1e3 * high, f"{name} max ms": 1e3 * max(seconds)}
