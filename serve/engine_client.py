"""The event loop's side of the engine: requests go in, each step's outputs come back in one call into the loop."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

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

    def generate(self, *requests: Request) -> "Generation":
        """Submit requests, all or none. Iterate over the result for the outputs, and close it whatever happens.

        Raises:
            RequestError: a request can't run.
            HTTPError: 429, too many answers are in flight.
            EngineError: the engine is gone.
        """
        answers = sum(request.config.n for request in requests)
        if self.in_flight and self.in_flight + answers > self._capacity:
            self._metrics.refused.inc()
            raise HTTPError(
                429,
                f"{self.in_flight} answers are in flight and the queue is full; try again later",
                code="queue_full",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
        generation = Generation(self, requests)
        try:
            for request in requests:
                self._generations[request.id] = generation
                self.in_flight += request.config.n
                # The same sink for all requests: the runner then calls it once a step, with everybody's outputs.
                self._runner.submit(request, self._sink)
        except BaseException:
            generation.close()
            raise
        return generation

    def fail_all(self, message: str) -> None:
        """End every generation with an error, for when the engine can't any more."""
        for generation in set(self._generations.values()):
            generation.fail(EngineStoppedError(message))

    def failure(self, message: str) -> Exception:
        """Called by a generation: what to raise for an answer that ended with an error."""
        return HTTPError(500, message, code="generation_failed") if self.alive else EngineError(message)

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
                self._metrics.generated(output, generation.timing(output), now)
                generation.add(output)

    def ended(self, answers: int) -> None:
        """Called by a generation: this many of its answers are over."""
        self.in_flight -= answers

    def abort(self, request_id: str) -> None:
        """Called by a generation: nobody wants the rest of this request's answers."""
        self._metrics.aborted.inc()
        self._runner.abort(request_id)

    def forget(self, request_id: str) -> None:
        """Called by a generation when it is closed: outputs that are still on their way are dropped."""
        self._generations.pop(request_id, None)


class Generation(AsyncIterator[list[Output]]):
    """The outputs of one request, or of several, as they come: all that are there at a time.

    Ends when all answers have ended. An answer that ended with an error ends it too.
    """

    def __init__(self, client: EngineClient, requests: Sequence[Request]):
        self._client = client
        self._unfinished = {request.id: request.config.n for request in requests}
        self._outputs: list[Output] = []
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        start = time.perf_counter()
        self._timings = {
            (request.id, index): AnswerTiming(start) for request in requests for index in range(request.config.n)
        }

    def timing(self, output: Output) -> "AnswerTiming":
        """When the tokens of the output's answer came."""
        return self._timings[output.request_id, output.index]

    def add(self, output: Output) -> None:
        """Take an output of the engine."""
        if output.finish_reason is not None:
            self._unfinished[output.request_id] -= 1
            self._client.ended(1)
            if not self._unfinished[output.request_id]:
                del self._unfinished[output.request_id]
        if output.finish_reason == "error":
            self._failure = self._client.failure(output.error or "the engine failed")
        self._outputs.append(output)
        self._wake()

    def fail(self, failure: Exception) -> None:
        """End with an error."""
        self._failure = failure
        self._wake()

    def close(self) -> None:
        """Stop listening; answers that still run are aborted, and their pages freed before the next step."""
        for request_id, answers in self._unfinished.items():
            self._client.ended(answers)
            self._client.abort(request_id)
        self._unfinished.clear()
        for request_id, _ in self._timings:
            self._client.forget(request_id)

    async def __anext__(self) -> list[Output]:
        """The outputs since the last call.

        Raises:
            HTTPError: 500, this answer failed.
            EngineError: the engine failed, or was stopped.
        """
        while True:
            if self._failure is not None:
                raise self._failure
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
