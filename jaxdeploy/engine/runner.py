"""Gives the engine its thread. Requests and aborts go in by a queue, outputs come back through a sink per request."""

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from jaxdeploy.engine.engine import Engine
from jaxdeploy.engine.request import Output, Request
from jaxdeploy.errors import EngineError, EngineStoppedError, JaxdeployError

Sink = Callable[[list[Output]], None]
"""Takes the outputs of one step for the requests that named it. Called on the engine's thread: must not block."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Submit:
    request: Request
    sink: Sink


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


class EngineRunner:
    """Steps the engine on a thread of its own while there is work, and sleeps while there is none.

    Every submitted request gets an output with a finish_reason, whatever happens: if a step fails, all requests in flight end with
    "error" and later ones are refused.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self._commands: queue.SimpleQueue[_Submit | _Abort | None] = queue.SimpleQueue()
        self._sinks: dict[str, Sink] = {}
        self._failure: BaseException | None = None
        self._stopped = False
        self._lock = threading.Lock()  # a request is queued before the thread drains the queue for good, or refused
        self._thread = threading.Thread(target=self._loop, name="jaxdeploy-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """True while requests are taken."""
        return not self._stopped and self._failure is None

    def submit(self, request: Request, sink: Sink) -> None:
        """Queue a request; its outputs go to ``sink``, the last one of each answer with a finish_reason.

        Raises:
            RequestError: the request can't run (checked at once, on the caller's thread).
            EngineError: the engine failed or was stopped.
        """
        self.engine.check(request)
        with self._lock:
            if self._failure is not None:
                raise EngineError(f"the engine failed: {self._failure!r}") from self._failure
            if self._stopped:
                raise EngineStoppedError("the engine was stopped")
            self._commands.put(_Submit(request, sink))

    def abort(self, request_id: str) -> None:
        """End a request before its next step; its sink gets outputs with finish_reason "abort"."""
        self._commands.put(_Abort(request_id))

    def stop(self, timeout: float | None = None) -> None:
        """End all requests and the thread."""
        with self._lock:
            self._stopped = True
            self._commands.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _loop(self) -> None:
        error = "the engine was stopped"
        try:
            while self._take_commands():
                self._deliver(self.engine.step())
        except Exception as failure:
            log.exception("engine step failed")
            error = f"the engine failed: {failure!r}"
            with self._lock:
                self._failure = failure
        self._end_all(error)

    def _take_commands(self) -> bool:
        """Handle what is queued; waits for something to do. False once the runner was stopped."""
        while True:
            try:
                command = self._commands.get(block=not self.engine.has_work)
            except queue.Empty:
                return True
            match command:
                case None:
                    return False
                case _Submit(request, sink):
                    self._start(request, sink)
                case _Abort(request_id):
                    self._deliver(self.engine.abort(request_id))

    def _start(self, request: Request, sink: Sink) -> None:
        if request.id in self._sinks:
            sink(
                [
                    _error(request.id, index, f"request id {request.id!r} is in flight")
                    for index in range(request.config.n)
                ]
            )
            return
        self._sinks[request.id] = sink
        try:
            self.engine.submit(request)
        except JaxdeployError as problem:
            self._deliver([_error(request.id, index, str(problem)) for index in range(request.config.n)])
            self._sinks.pop(request.id, None)

    def _deliver(self, outputs: list[Output]) -> None:
        by_sink: dict[Sink, list[Output]] = {}
        for output in outputs:
            by_sink.setdefault(self._sinks[output.request_id], []).append(output)
        for request_id in {output.request_id for output in outputs if output.finish_reason}:
            if not self.engine.is_in_flight(request_id):
                self._sinks.pop(request_id, None)
        for sink, batch in by_sink.items():
            sink(batch)

    def _end_all(self, error: str) -> None:
        with self._lock:
            self._stopped = True
        while not self._commands.empty():
            command = self._commands.get()
            if isinstance(command, _Submit):
                self._sinks[command.request.id] = command.sink
                self._deliver([_error(command.request.id, i, error) for i in range(command.request.config.n)])
        for request_id, unfinished in self.engine.unfinished().items():
            self._deliver([_error(request_id, index, error) for index in unfinished])
        self._sinks.clear()


def _error(request_id: str, index: int, message: str) -> Output:
    return Output(request_id, index, "", finish_reason="error", error=message)
