"""Keeps an engine busy with fuzzed requests, and looks at what is left when they are gone."""

import queue
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from engine_bench.fuzz import Fuzzer
from engine_bench.ledger import Ledger
from engine_bench.measure import percentiles
from engine_bench.resident import MemoryLog
from jaxdeploy.config.generation import GenerationConfig
from jaxdeploy.engine.engine import Engine
from jaxdeploy.engine.request import Output, Request
from jaxdeploy.engine.runner import EngineRunner
from jaxdeploy.errors import RequestError

IDLE_STEPS = 1000
"""Steps without any output after which an engine that says that it has work is stuck."""
SILENT_SECONDS = 120.0
"""The same for an engine on a thread."""


class StuckError(Exception):
    """The engine has work and does not get on with it."""


class Driver(Protocol):
    """A way to talk to an engine."""

    def submit(self, request: Request) -> None:
        """Queue a request; RequestError where it can't run."""
        ...

    def abort(self, request_id: str) -> list[Output]:
        """End a request; its last outputs come back here or by ``poll``."""
        ...

    def poll(self) -> list[Output]:
        """What happened next."""
        ...


class Stepper:
    """Steps the engine on this very thread: the same seed makes the same steps."""

    def __init__(self, engine: Engine):
        self.engine, self.idle = engine, 0
        self.submit, self.abort = engine.submit, engine.abort

    def poll(self) -> list[Output]:
        """One step's outputs."""
        outputs = self.engine.step()
        self.idle = 0 if outputs else self.idle + 1
        if self.idle > IDLE_STEPS:
            raise StuckError(f"{IDLE_STEPS} steps gave nothing; in flight: {self.engine.unfinished()}")
        return outputs


class Threaded:
    """Talks to an engine on its own thread, as a server does."""

    def __init__(self, runner: EngineRunner):
        self.runner = runner
        self.outputs: queue.SimpleQueue[list[Output]] = queue.SimpleQueue()

    def submit(self, request: Request) -> None:
        """See ``Driver``."""
        self.runner.submit(request, self.outputs.put)

    def abort(self, request_id: str) -> list[Output]:
        """See ``Driver``; what it ends comes by ``poll``."""
        self.runner.abort(request_id)
        return []

    def poll(self) -> list[Output]:
        """The next outputs, once there are any."""
        try:
            return self.outputs.get(timeout=SILENT_SECONDS)
        except queue.Empty:
            raise StuckError(
                f"no output for {SILENT_SECONDS} s; in flight: {self.runner.engine.unfinished()}"
            ) from None


class Soak:
    """One run of an engine.

    Args:
        goes_on: told how many requests were made; False ends the run.
        tell: called with a line of text now and then.
        every: seconds between such lines; memory is sampled a hundred times as often.
    """

    def __init__(
        self,
        engine: Engine,
        driver: Driver,
        fuzzer: Fuzzer,
        *,
        goes_on: Callable[[int], bool],
        tell: Callable[[str], None],
        every: float,
    ):
        self.engine, self.driver, self.fuzzer = engine, driver, fuzzer
        self.goes_on, self.tell, self.every = goes_on, tell, every
        self.ledger, self.memory = Ledger(engine.end_ids, engine.session_len), MemoryLog()
        self.made = self.refused = 0
        # Not the fuzzer's: what is asked must not depend on how fast the engine is.
        self._rng = np.random.RandomState(fuzzer.seed)

    def run(self) -> dict[str, Any]:
        """Run it; returns what was seen. What was wrong is in ``ledger.problems``."""
        begun = time.perf_counter()
        sampled = told = 0.0
        try:
            wanted = 1
            while self.ledger.open or self.goes_on(self.made):
                if len(self.ledger.open) < wanted and self.goes_on(self.made):
                    self._submit()
                    continue
                if not self.ledger.open:
                    wanted = self._crowd()
                    continue
                self._take(self.driver.poll())
                if self._rng.randint(20) == 0:
                    wanted = self._crowd()
                seconds = time.perf_counter() - begun
                if seconds - sampled > self.every / 100:
                    sampled, mib = seconds, self.memory.sample(seconds, self.ended)
                    if seconds - told > self.every:
                        told = seconds
                        self.tell(
                            f"{seconds:6.0f} s: {self.ended} requests, {self.ledger.tokens} tokens, {mib:.0f} MiB"
                        )
        except StuckError as stuck:
            self.ledger.problems.append(str(stuck))
        seconds = time.perf_counter() - begun
        self.memory.sample(seconds, self.ended)
        return self._report(seconds)

    @property
    def ended(self) -> int:
        """Requests that are over."""
        return self.made - len(self.ledger.open)

    def _submit(self) -> None:
        case = self.fuzzer.case()
        self.made += 1
        self.ledger.submitted(case)
        self.driver.submit(case.request)
        if case.abort_after == 0:
            self.ledger.open[case.request.id].aborted = True
            self._take(self.driver.abort(case.request.id))
        if self.made % 100 == 0:
            try:
                self.driver.submit(self.fuzzer.broken())
            except RequestError:
                self.refused += 1
            else:
                self.ledger.problems.append("a request that can't run was taken")

    def _take(self, outputs: list[Output]) -> None:
        for request_id in self.ledger.take(outputs):
            self._take(self.driver.abort(request_id))

    def _crowd(self) -> int:
        """How many requests shall be in flight: from none, which lets the engine run dry, to three for each place."""
        return self._rng.randint(3 * self.engine.limits.batch_size + 1)

    def _report(self, seconds: float) -> dict[str, Any]:
        engine, ledger = self.engine, self.ledger
        scheduler = engine.scheduler
        return {
            "requests": self.ended,
            "refused": self.refused,
            "seconds": seconds,
            "tokens": ledger.tokens,
            "reasons": dict(ledger.reasons),
            "compile misses": engine.executor.compile_misses,
            "preemptions": scheduler.preemptions,
            "cached tokens": scheduler.prefix_hit_tokens,
            "drafted": engine.drafted_tokens,
            "accepted": engine.accepted_tokens,
            "steps": engine.executor.steps,
            "asked again": ledger.compared,
            "answered differently": ledger.different,
            **percentiles("TTFT", list(ledger.ttft)),
            **percentiles("ITL", list(ledger.itl)),
            "growth MiB": self.memory.growth,
            "memory (s, requests, MiB)": thinned(self.memory.samples, 24),
        }


def left_behind(engine: Engine) -> list[str]:
    """What an engine that nobody asks anything still holds: pages, places in a batch, requests, work."""
    found = []
    if engine.has_work or engine.unfinished():
        found.append(f"work is left: {engine.unfinished()}")
        return found
    if used := engine.allocator.used_pages:
        found.append(f"{used} pages did not come back")
    if engine.allocator.allocate(engine.memory.num_pages) is None:
        found.append("not all pages can be had")
    else:
        engine.allocator.release(range(engine.memory.num_pages))
    places = engine.limits.batch_size
    for i in range(places):
        engine.submit(Request(f"place {i}", [i], GenerationConfig(max_new_tokens=1, ignore_eos=True)))
    engine.step()
    if (free := len(engine.scheduler.running)) != places:
        found.append(f"{free} of {places} places of a batch are free")
    while engine.has_work:
        engine.step()
    return found


def thinned(samples: list, most: int) -> list:
    """At most about ``most`` of them, evenly, the last one included."""
    stride = max(1, -(-len(samples) // most))
    return samples[::-1][::stride][::-1]
