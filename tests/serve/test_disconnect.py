import asyncio

import pytest
from support.fake_engine import FakeModel
from support.fake_server import MESSAGES, Connection, ready_state

from serve.app import create_app

PROMPTS = {"/v1/chat/completions": {"messages": MESSAGES}, "/v1/completions": {"prompt": ["a", "b"], "max_tokens": 900}}


@pytest.mark.parametrize("path", PROMPTS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_the_engine(path, stream):
    async def scenario():
        model = FakeModel(lambda request, index: "word " * 100)
        model.runner.free.clear()
        async with ready_state(model) as state:
            connection = Connection(create_app(state), path)
            connection.send_json({**PROMPTS[path], "stream": stream, "n": 2})
            while not model.runner.submitted:
                await asyncio.sleep(0.001)
            model.runner.step()
            model.runner.step()
            if stream:
                await connection.until(b"o")
            running = len(model.runner.active)
            connection.leave()
            await connection.task
            assert running == 2 * len(model.runner.submitted)
            assert model.runner.active == []
            assert sorted(model.runner.aborted) == sorted(request.id for request in model.runner.submitted)
            assert state.service.client.in_flight == 0
            assert state.in_flight == 0

    asyncio.run(scenario())


def test_a_client_that_leaves_before_the_stream_began():
    async def scenario():
        model = FakeModel(lambda request, index: "word")
        async with ready_state(model) as state:
            connection = Connection(create_app(state), "/v1/chat/completions")
            connection.send_json({"messages": MESSAGES, "stream": True})
            connection.leave()
            await connection.task
            assert model.runner.active == []
            assert state.service.client.in_flight == 0

    asyncio.run(scenario())


def test_an_answer_that_ends_aborts_nothing():
    async def scenario():
        model = FakeModel(lambda request, index: "word")
        async with ready_state(model) as state:
            connection = Connection(create_app(state), "/v1/chat/completions")
            connection.send_json({"messages": MESSAGES, "stream": True})
            await connection.task
            assert connection.body.endswith(b"data: [DONE]\n\n")
            assert model.runner.aborted == []
            assert state.service.client.in_flight == 0

    asyncio.run(scenario())


def test_an_engine_that_fails_ends_the_stream_with_an_error():
    async def scenario():
        model = FakeModel(lambda request, index: "word " * 100)
        model.runner.free.clear()
        async with ready_state(model) as state:
            connection = Connection(create_app(state), "/v1/chat/completions")
            connection.send_json({"messages": MESSAGES, "stream": True})
            await connection.until(b"assistant")
            model.runner.step()
            await connection.until(b'"w"')
            model.runner.fail()
            await connection.task
            assert connection.status == 200
            *_, error, done, end = connection.body.split(b"\n\n")
            assert b'"error": {"message": "the engine failed' in error
            assert (done, end) == (b"data: [DONE]", b"")

    asyncio.run(scenario())


def test_a_client_that_reads_nothing_holds_nobody_up():
    async def scenario():
        model = FakeModel(lambda request, index: "word")
        async with ready_state(model) as state:
            app = create_app(state)
            slow = Connection(app, "/v1/chat/completions")
            slow.reads.clear()
            slow.send_json({"messages": MESSAGES, "stream": True})
            while state.service.client.in_flight or not model.runner.submitted:
                await asyncio.sleep(0.001)
            other = Connection(app, "/v1/chat/completions")
            other.send_json({"messages": MESSAGES})
            await other.task
            assert other.status == 200
            assert slow.status is None
            slow.reads.set()
            await slow.task
            assert slow.body.endswith(b"data: [DONE]\n\n")

    asyncio.run(scenario())
