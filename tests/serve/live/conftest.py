"""One server process on the demo model for all live tests, and OpenAI's client for it."""

from collections.abc import Iterator

import pytest
from openai import OpenAI
from support.live_server import LiveServer


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The server, ready."""
    directory = tmp_path_factory.mktemp("live")
    cache = str(directory / "compiled")
    options = ("--max-batch-size", "8", "--session-len", "2048", "--compile-cache", cache)
    with LiveServer(directory / "log.txt", *options) as live:
        live.wait_ready()
        yield live


@pytest.fixture(scope="session")
def client(server: LiveServer) -> Iterator[OpenAI]:
    """A client that doesn't try again: what fails, fails."""
    with OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=300) as openai:
        yield openai


@pytest.fixture(scope="session")
def model(client: OpenAI) -> str:
    """What the server calls its model."""
    return client.models.list().data[0].id
