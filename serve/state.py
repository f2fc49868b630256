"""What all endpoints share: options, metrics and, once it is loaded, the model."""

import time
from typing import Literal

from serve.errors import HTTPError
from serve.metrics import Metrics
from serve.options import ServerOptions
from serve.response_store import ResponseStore
from serve.service import Service

Phase = Literal["loading", "compiling", "ready", "draining", "dead"]
LOADING_RETRY_SECONDS = 5


class ServerState:
    """The server from start to end. Changed on the event loop only, but for ``progress``.

    Attributes:
        draining: no new work is taken.
        in_flight: requests being answered that need the model.
        responses: answers that clients may go on from.
    """

    def __init__(self, options: ServerOptions | None = None):
        self.options = options or ServerOptions()
        self.metrics = Metrics()
        self.responses = ResponseStore()
        self.started = time.time()
        self.draining = False
        self.in_flight = 0
        self._service: Service | None = None
        self._progress = ("load", 0, 0)

    def progress(self, phase: str, done: int, total: int) -> None:
        """Note how far loading is; may be called on any thread."""
        self._progress = (phase, done, total)

    def set_ready(self, service: Service) -> None:
        """The model is there."""
        self._service = service
        self.metrics.watch_engine(service.stats)

    def give_up(self, message: str) -> None:
        """End what still runs with an error."""
        if self._service is not None:
            self._service.client.fail_all(message)

    @property
    def phase(self) -> Phase:
        """Where the server is in its life."""
        if self._service is not None and not self._service.client.alive:
            return "dead"
        if self.draining:
            return "draining"
        if self._service is not None:
            return "ready"
        return "compiling" if self._progress[0] == "compile" else "loading"

    @property
    def status(self) -> str:
        """The phase for people: ``compiling 7/14``, ``loading 40 %``."""
        phase = self.phase
        name, done, total = self._progress
        if phase == "compiling":
            return f"compiling {done}/{total}"
        if phase == "loading" and name == "load" and total:
            return f"loading {100 * done // total} %"
        return phase

    @property
    def service(self) -> Service:
        """The loaded model and what answers with it; only while ready."""
        self.require_ready()
        assert self._service is not None
        return self._service

    def require_ready(self) -> None:
        """Refuse work while there is no model, or none any more.

        Raises:
            HTTPError: 503.
        """
        phase = self.phase
        if phase == "ready":
            return
        if phase == "dead":
            raise HTTPError(503, "the engine failed; restart the server", code="engine_unavailable")
        message = "the server is shutting down" if phase == "draining" else f"the model is not ready: {self.status}"
        raise HTTPError(
            503,
            message,
            code=f"server_{phase}",
            headers={"Retry-After": str(LOADING_RETRY_SECONDS)},
            close=phase == "draining",
        )
