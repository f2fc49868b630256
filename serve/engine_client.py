"""The event loop's side of the engine: requests go in, each step's outputs come back in one call into the loop."""

import asyncio
import time
from collections.abc import AsyncIterator

from jaxdeploy.engine.request import Output, Request
from jaxdeploy.errors import EngineError, EngineStoppedError
from serve.errors import HTTPError
from serve.metrics import Metrics
from serve.served_model import Runner

RETRY_SECONDS = 1
"""What a refused client is told to wait; a batch makes room several times a second."""


class EngineClient:
    """Lets coroutines generate. Use it on the event loop that it was made on.

    Args:
        runner: the engine's thread.
        capacity: answers that may be in flight at once, running or waiting; more are refused.
        metrics: told about every answer.
    """

    def __init__(self, runner: Runner, *, capacity: int, metrics: Metrics):
        self._runner = runner
        self._capacity = capacity
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._generations: dict[str, Generation] = {}
        self.in_flight = 0

    @property
    def alive(self) -> bool:
        """True while the engine takes requests."""
        return self._runner.alive

    def generate(self, request: Request) -> "Generation":
        """Submit a request. Iterate over the result for the outputs, and close it whatever happens.

        Raises:
            RequestError: the request can't run.
            HTTPError: 429, too many answers are in flight.
            EngineError: the engine is gone.
        """
        answers = request.config.n
        if self.in_flight and self.in_flight + answers > self._capacity:
            self._metrics.refused.inc()
            raise HTTPError(
                429,
                f"{self.in_flight} answers are in flight and the queue is full; try again later",
                code="queue_full",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
        generation = Generation(self, request.id, answers)
        self._generations[request.id] = generation
        try:
            # The same sink for all requests: the runner then calls it once a step, with everybody's outputs.
            self._runner.submit(request, self._sink)
        except BaseException:
            del self._generations[request.id]
            raise
        self.in_flight += answers
        return generation

    def fail_all(self, message: str) -> None:
        """End every generation with an error, for when the engine can't any more."""
        for generation in self._generations.values():
            generation.fail(message)

    def _sink(self, outputs: list[Output]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._deliver, outputs)
        except RuntimeError:  # the loop is closed: the server is gone, and so is everybody who listened
            return

    def _deliver(self, outputs: list[Output]) -> None:
        now = time.perf_counter()
        for output in outputs:
            generation = self._generations.get(output.request_id)
            if generation is not None:
                self._metrics.generated(output, generation.timing(output.index), now)
                generation.add(output)

    def finished(self, answers: int) -> None:
        """Called by a generation: this many of its answers are over."""
        self.in_flight -= answers

    def forget(self, request_id: str, unfinished: int) -> None:
        """Called by a generation when it is closed; what it still has running is aborted."""
        if self._generations.pop(request_id, None) is not None and unfinished:
            self.in_flight -= unfinished
            self._metrics.aborted.inc()
            self._runner.abort(request_id)


class Generation(AsyncIterator[list[Output]]):
    """The outputs of one request as they come, all that are there at a time.

    Ends when all answers have ended. An answer that the engine ended with an error raises EngineError.
    """

    def __init__(self, client: EngineClient, request_id: str, answers: int):
        self.request_id = request_id
        self._client = client
        self._unfinished = answers
        self._outputs: list[Output] = []
        self._failure: str | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timings = [AnswerTiming(time.perf_counter()) for _ in range(answers)]

    def timing(self, index: int) -> "AnswerTiming":
        """When the answer's tokens came."""
        return self._timings[index]

    def add(self, output: Output) -> None:
        """Take an output of the engine."""
        if output.finish_reason is not None:
            self._unfinished -= 1
            self._client.finished(1)
        if output.finish_reason == "error":
            self._failure = output.error or "the engine failed"
        self._outputs.append(output)
        self._wake()

    def fail(self, message: str) -> None:
        """End with an error."""
        self._failure = message
        self._wake()

    def close(self) -> None:
        """Stop listening; answers that still run are aborted, and their pages freed before the next step."""
        self._client.forget(self.request_id, self._unfinished)
        self._unfinished = 0

    async def __anext__(self) -> list[Output]:
        """The outputs since the last call.

        Raises:
            EngineError: the engine ended an answer with an error.
        """
        while True:
            if self._failure is not None:
                raise EngineStoppedError(self._failure) if not self._client.alive else EngineError(self._failure)
            if self._outputs:
                outputs, self._outputs = self._outputs, []
                return outputs
            if not self._unfinished:
                self.close()
                raise StopAsyncIteration
            self._waiter = self._client._loop.create_future()
            await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class AnswerTiming:
    """Times of one answer, in seconds of ``time.perf_counter``."""

    __slots__ = ("last", "start")

    def __init__(self, start: float):
        self.start = start
        self.last: float | None = None
