"""Runs the server: listens at once, loads the model meanwhile, stops gently."""

import asyncio
import logging
import os
import socket
import ssl
import sys
import threading
from collections.abc import Callable

import uvicorn

from jaxdeploy.errors import ConfigError
from serve.app import create_app
from serve.draining_server import DrainingServer
from serve.options import ServerOptions
from serve.served_model import ServedModel
from serve.service import make_service
from serve.state import ServerState

Progress = Callable[[str, int, int], None]
KEEP_ALIVE_SECONDS = 30
SHUTDOWN_SECONDS = 2
"""For connections that still send their last bytes when nothing runs any more."""
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def run(
    options: ServerOptions, load: Callable[[Progress], ServedModel], announce: Callable[[str], object] = print
) -> None:
    """Serve until SIGTERM or SIGINT; returns when everything that ran is answered or ``drain_seconds`` are over.

    Args:
        options: of the server.
        load: loads the model, on another thread; told whom to report its progress to.
        announce: is given the line that says where the server is, once the model is ready.

    Raises:
        UserError: the address is taken, or what ``load`` raises.
    """
    logging.basicConfig(level=options.log_level.upper(), format=LOG_FORMAT)
    state = ServerState(options)
    with listening_socket(options) as listener:
        config = server_config(options, state)
        unfinished = asyncio.run(
            _serve(config, state, load, listener, announce), loop_factory=config.get_loop_factory()
        )
    if unfinished:
        # A compilation can't be interrupted, and leaving in Python's own way would wait for it.
        sys.stderr.flush()
        os._exit(0)


def listening_socket(options: ServerOptions) -> socket.socket:
    """A socket at the options' address.

    Raises:
        ConfigError: the address is taken, or not ours.
    """
    address = (options.server_name, options.server_port)
    try:
        return socket.create_server(address, family=socket.AF_INET6 if ":" in options.server_name else socket.AF_INET)
    except OSError as error:
        raise ConfigError(
            f"can't listen on {address[0]} port {address[1]}: {error.strerror}; choose another --server-port"
        ) from None


def server_config(options: ServerOptions, state: ServerState) -> uvicorn.Config:
    """uvicorn's options.

    Raises:
        ConfigError: a TLS file can't be read.
    """
    config = uvicorn.Config(
        create_app(state),
        lifespan="off",
        ws="none",
        log_config=None,
        log_level=options.log_level.lower(),
        access_log=options.log_level.upper() in ("INFO", "DEBUG"),
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        ssl_keyfile=options.ssl_keyfile,
        ssl_certfile=options.ssl_certfile,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        files = f"{options.ssl_keyfile!r} and {options.ssl_certfile!r}"
        raise ConfigError(f"--ssl-keyfile and --ssl-certfile, {files}, can't be used: {error}") from None
    return config


async def _serve(
    config: uvicorn.Config,
    state: ServerState,
    load: Callable[[Progress], ServedModel],
    listener: socket.socket,
    announce: Callable[[str], object],
) -> bool:
    """Serve until told to stop. True if the model was still loading then."""
    server = DrainingServer(config, state)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    loading = start_loading(load, state.progress)
    await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
    if not loading.done():
        await serving
        return True
    try:
        model = loading.result()
        try:
            state.set_ready(make_service(model, state.options, state.metrics))
            host, port = listener.getsockname()[:2]
            scheme = "https" if config.is_ssl else "http"
            announce(f"jaxdeploy serves {state.service.name} at {scheme}://{host}:{port}")
            await serving
        finally:
            await asyncio.to_thread(model.close)
    finally:
        server.start_draining()
        await serving
    return False


def start_loading(load: Callable[[Progress], ServedModel], progress: Progress) -> asyncio.Future[ServedModel]:
    """Call ``load`` on a daemon thread, which does not hold up the end of the process."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[ServedModel] = loop.create_future()

    def settle(set_result: Callable[[], None]) -> None:
        if not result.done():
            set_result()

    def work() -> None:
        try:
            model = load(progress)
        except BaseException as problem:
            failure = problem
            _tell(loop, lambda: settle(lambda: result.set_exception(failure)))
        else:
            _tell(loop, lambda: settle(lambda: result.set_result(model)))

    threading.Thread(target=work, name="jaxdeploy-load", daemon=True).start()
    return result


def _tell(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(what)
    except RuntimeError:  # the loop is closed: the server was stopped before the model was ready
        return
