"""uvicorn, stopped in two steps: first no new work is taken, then the server goes."""

import asyncio
import signal
from types import FrameType

import uvicorn

from serve.state import ServerState

POLL_SECONDS = 0.02


class DrainingServer(uvicorn.Server):
    """A server that answers what it has begun before it stops.

    SIGTERM or SIGINT: ``/health`` says draining, new requests get 503, running ones may finish for ``drain_seconds``. A
    second signal stops at once.

    Args:
        config: uvicorn's.
        state: of the application.
    """

    def __init__(self, config: uvicorn.Config, state: ServerState):
        super().__init__(config)
        self._state = state
        self._loop = asyncio.get_running_loop()
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn's signal handler. The signal is not raised again afterwards: the process ends with status 0."""
        if self._state.draining:
            self.should_exit = True
            self.force_exit = sig == signal.SIGINT
        else:
            self._loop.call_soon_threadsafe(self.start_draining)

    def start_draining(self) -> None:
        """Take no new work, and stop when nothing runs any more."""
        if self._draining is None:
            self._state.draining = True
            self._draining = self._loop.create_task(self._drain())

    async def _drain(self) -> None:
        end = self._loop.time() + self._state.options.drain_seconds
        while self._state.in_flight and self._loop.time() < end:
            await asyncio.sleep(POLL_SECONDS)
        self._state.give_up("the server was stopped")
        self.should_exit = True
