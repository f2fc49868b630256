"""Many clients at once, clients that leave, and the end of the server: over the network, on the demo model."""

import asyncio
import threading

import pytest
from openai import APIStatusError, APITimeoutError, AsyncOpenAI, AuthenticationError, OpenAI
from support.fake_engine import FakeModel
from support.live_server import LiveServer
from support.socket_server import listening

from serve.options import ServerOptions

pytestmark = pytest.mark.demo

STORY = [{"role": "user", "content": "Tell me a long story."}]


def assert_idle(server):
    """Wait until nothing runs; the engine has given back what it held."""
    for name in ("requests_running", "requests_waiting", "cache_pages_used"):
        server.wait_for_metric(name, 0)


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_client_that_leaves_in_mid_stream_frees_its_pages(server, client, model, api):
    aborted = server.metric("requests_aborted_total")
    asked = {"model": model, "stream": True, "max_tokens": 1500, "extra_body": {"ignore_eos": True}}
    if api == "chat":
        stream = client.chat.completions.create(**asked, messages=STORY)
    else:
        stream = client.completions.create(**asked, prompt="Once upon a time")
    parts = iter(stream)
    for _ in range(3):
        next(parts)
    assert server.metric("cache_pages_used") > 0
    stream.close()
    server.wait_for_metric("requests_aborted_total", aborted + 1)
    assert_idle(server)


def test_a_client_that_gives_up_waiting_frees_its_pages(server, client, model):
    aborted = server.metric("requests_aborted_total")
    with pytest.raises(APITimeoutError):
        client.with_options(timeout=1).chat.completions.create(
            model=model, messages=STORY, max_tokens=1500, n=2, extra_body={"ignore_eos": True}
        )
    server.wait_for_metric("requests_aborted_total", aborted + 1)
    assert_idle(server)


def test_64_streams_at_once(server, model):
    async def one(client, number):
        text, finish = "", None
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": f"Say {number}."}],
            max_tokens=6,
            seed=number,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        async for chunk in stream:
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
            tokens = chunk.usage.completion_tokens if chunk.usage else None
        return text, finish, tokens

    async def all_of_them():
        async with AsyncOpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=600) as client:
            return await asyncio.gather(*(one(client, number) for number in range(64)))

    before = server.metric("generation_tokens_total")
    answers = asyncio.run(all_of_them())
    assert [finish for _, finish, _ in answers] == ["length"] * 64
    assert [tokens for _, _, tokens in answers] == [6] * 64
    assert sum(bool(text) for text, _, _ in answers) > 60
    assert server.metric("generation_tokens_total") - before == 64 * 6
    assert_idle(server)


def test_nothing_was_compiled_for_a_request(server, client, model):
    # The counter is the process's: the first embedding or scored prompt of another test counts there too.
    before = server.metric("compile_misses_total")
    client.chat.completions.create(model=model, messages=STORY, max_tokens=2)
    client.chat.completions.create(model=model, messages=STORY, max_tokens=2, n=3, temperature=1.5, logprobs=True)
    assert server.metric("compile_misses_total") == before


def test_keys():
    fake = FakeModel(lambda request, index: "Hello")
    with listening(fake, ServerOptions(api_keys=("sesame", "open"))) as address:

        def hello(key):
            with OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) as client:
                return client.chat.completions.create(model="fake", messages=STORY).choices[0].message.content

        assert hello("sesame") == hello("open") == "Hello"
        with pytest.raises(AuthenticationError) as refused:
            hello("wrong")
        assert refused.value.code == "invalid_api_key"


def test_sigterm_finishes_what_runs_and_takes_nothing_new(tmp_path, server):
    """A second process, which finds everything compiled in the first one's cache."""
    with LiveServer(tmp_path / "log.txt", *server.options) as second:
        second.wait_ready()
        with OpenAI(base_url=f"{second.address}/v1", api_key="none", max_retries=0, timeout=300) as client:
            model = client.models.list().data[0].id
            stream = client.chat.completions.create(
                model=model, messages=STORY, max_tokens=60, stream=True, extra_body={"ignore_eos": True}
            )
            parts = iter(stream)
            next(parts)
            second.terminate()
            while second.health() != "draining":
                threading.Event().wait(0.01)
            with pytest.raises(APIStatusError) as refused:
                client.chat.completions.create(model=model, messages=STORY)
            assert refused.value.status_code == 503
            assert refused.value.code == "server_draining"
            assert [part.choices[0].finish_reason for part in parts][-1] == "length"
        assert second.exit_status() == 0
    assert "Traceback" not in second.log
