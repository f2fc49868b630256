"""The server as a process: it starts, answers over TCP, and stops gently."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from support.fake_server import MESSAGES

from jaxdeploy.errors import CheckpointError, ConfigError
from serve.api_server import listening_socket, run, server_config
from serve.options import ServerOptions
from serve.state import ServerState

TESTS = Path(__file__).parents[1]
CHAT = "/v1/chat/completions"


@contextmanager
def server_process(drain_seconds):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    script = str(TESTS / "support" / "run_fake_server.py")
    process = subprocess.Popen(
        [sys.executable, "-W", "error", script, "0", str(drain_seconds)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("jaxdeploy serves fake at http://127.0.0.1:"), line
        yield process, line.rsplit(" ", 1)[1].strip()
    finally:
        process.kill()
        process.communicate()


def test_a_running_answer_is_finished_before_the_process_ends():
    with server_process(drain_seconds=20) as (process, url), httpx2.Client(base_url=url) as client:
        assert client.get("/health").json() == {"status": "ready"}
        with client.stream("POST", CHAT, json={"messages": MESSAGES, "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""]
        assert sum("content" in line for line in rest) >= len("tick " * 8)
        assert process.wait(20) == 0


def test_an_answer_that_takes_too_long_ends_with_an_error():
    with server_process(drain_seconds=0) as (process, url), httpx2.Client(base_url=url) as client:
        with client.stream("POST", CHAT, json={"messages": MESSAGES, "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""]
        assert '"error"' in rest[-4]
        assert process.wait(20) == 0


def test_a_hundred_megabytes_are_refused_and_the_next_request_is_answered():
    def body():
        for _ in range(100):
            yield b" " * 2**20

    with server_process(drain_seconds=0) as (_, url):
        sized = httpx2.post(url + CHAT, content=b" " * (100 * 2**20))
        endless = httpx2.post(url + CHAT, content=body())
        good = httpx2.post(url + CHAT, json={"messages": MESSAGES})
    assert [sized.status_code, endless.status_code, good.status_code] == [413, 413, 200]
    assert sized.json()["error"]["code"] == "request_too_large"


def test_an_address_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="--server-port"):
        listening_socket(ServerOptions(server_name="127.0.0.1", server_port=taken.getsockname()[1]))


def test_a_model_that_does_not_load_ends_the_server():
    def load(progress):
        raise CheckpointError("no such model")

    with pytest.raises(CheckpointError, match="no such model"):
        run(ServerOptions(server_name="127.0.0.1", server_port=0), load)


def test_bad_tls_files(tmp_path):
    file = tmp_path / "key.pem"
    file.write_text("nonsense")
    options = ServerOptions(ssl_keyfile=str(file), ssl_certfile=str(file))
    with pytest.raises(ConfigError, match="--ssl-keyfile"):
        server_config(options, ServerState(options))
