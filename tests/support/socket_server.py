"""The server around a fake model, on a real socket, in a thread of this process."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serve.api_server import listening_socket, server_config
from serve.draining_server import DrainingServer
from serve.options import ServerOptions
from serve.service import make_service
from serve.state import ServerState


@contextmanager
def listening(model: Any, options: ServerOptions | None = None) -> Iterator[str]:
    """Serves ``model`` on a free port; gives the address.

    Args:
        model: a FakeModel, or a loaded one.
        options: of the server, but for its address.
    """
    changes = {name: getattr(options, name) for name in options.__slots__} if options else {}
    options = ServerOptions(**{**changes, "server_name": "127.0.0.1", "server_port": 0})
    state = ServerState(options)
    started, stop = threading.Event(), threading.Event()
    with listening_socket(options) as listener:
        config = server_config(options, state)

        async def serve() -> None:
            state.set_ready(make_service(model, options, state.metrics))
            server = _Server(config, state)
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started:
                await asyncio.sleep(0.005)
            started.set()
            await asyncio.to_thread(stop.wait)
            server.should_exit = True
            await serving

        thread = threading.Thread(target=lambda: asyncio.run(serve(), loop_factory=config.get_loop_factory()))
        thread.start()
        try:
            if not started.wait(30):
                raise RuntimeError("the server did not start")
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            thread.join()
            model.close()


class _Server(DrainingServer):
    """Leaves the process's signal handlers alone."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Catch none."""
        yield
