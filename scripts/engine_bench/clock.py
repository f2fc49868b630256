"""Steps an engine and notes when each token came."""

import itertools
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from engine_bench.lengths import Job
from jaxdeploy.config.generation import GenerationConfig
from jaxdeploy.engine.engine import Engine
from jaxdeploy.engine.request import Request

_names = itertools.count()


@dataclass
class Timeline:
    """One request: when it was submitted and when its tokens came, in seconds."""

    submitted: float
    tokens: list[float] = field(default_factory=list)

    @property
    def first(self) -> float:
        """Time to first token."""
        return self.tokens[0] - self.submitted

    @property
    def gaps(self) -> list[float]:
        """Times between tokens."""
        return np.diff(self.tokens).tolist()


class Clock:
    """Runs requests on an engine, on this very thread.

    Attributes:
        lines: what happened to each request, by id.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self.lines: dict[str, Timeline] = {}

    def submit(self, job: Job) -> str:
        """Queue a greedy request that runs to its last token; returns its id."""
        name = str(next(_names))
        config = GenerationConfig(max_new_tokens=job.new, ignore_eos=True)
        self.lines[name] = Timeline(time.perf_counter())
        self.engine.submit(Request(name, job.prompt, config))
        return name

    def step(self) -> int:
        """One step of the engine; returns how many answers ended."""
        outputs = self.engine.step()
        now = time.perf_counter()
        for output in outputs:
            self.lines[output.request_id].tokens += [now] * len(output.token_ids)
        return sum(output.finish_reason is not None for output in outputs)

    def finish(self) -> None:
        """Run until nothing is left to do."""
        while self.engine.has_work:
            self.step()

    def run(self, jobs: list[Job], concurrency: int) -> None:
        """Run all requests, ``concurrency`` of them at a time."""
        waiting = deque(jobs)
        for _ in range(min(concurrency, len(waiting))):
            self.submit(waiting.popleft())
        while self.engine.has_work:
            for _ in range(self.step()):
                if waiting:
                    self.submit(waiting.popleft())

    @property
    def made(self) -> int:
        """Tokens so far."""
        return sum(len(line.tokens) for line in self.lines.values())
