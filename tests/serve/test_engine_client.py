import asyncio

import pytest
from support.fake_engine import FakeModel

from jaxdeploy.config.generation import GenerationConfig
from jaxdeploy.engine.request import Request
from jaxdeploy.errors import EngineError, PromptTooLongError
from serve.engine_client import EngineClient
from serve.errors import HTTPError
from serve.metrics import Metrics


def request(name, n=1, prompt=(65,)):
    return Request(name, list(prompt), GenerationConfig(n=n))


@pytest.fixture
def model():
    model = FakeModel(lambda request, index: "ab")
    model.runner.free.clear()
    yield model
    model.close()


def scenario(model, run, capacity=100):
    async def main():
        await run(EngineClient(model.runner, capacity=capacity, metrics=Metrics()))

    asyncio.run(main())


def test_a_step_enters_the_loop_once_for_all_requests(model):
    async def run(client):
        generations = [client.generate(request(str(i))) for i in range(5)]
        calls = []
        loop = asyncio.get_running_loop()
        enter = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *args: (calls.append(args), enter(*args))
        model.runner.step()
        loop.call_soon_threadsafe = enter
        assert len(calls) == 1
        assert [[output.text for output in await anext(g)] for g in generations] == [["a"]] * 5
        for generation in generations:
            generation.close()

    scenario(model, run)


def test_steps_that_nobody_fetched_come_together(model):
    async def run(client):
        generation = client.generate(request("a"))
        for _ in range(3):
            model.runner.step()
        outputs = await anext(generation)
        assert [output.text for output in outputs] == ["a", "b", ""]
        assert outputs[-1].finish_reason == "stop"
        with pytest.raises(StopAsyncIteration):
            await anext(generation)
        assert client.in_flight == 0
        assert model.runner.aborted == []

    scenario(model, run)


def test_a_full_queue_refuses(model):
    async def run(client):
        first = client.generate(request("a", n=2))
        with pytest.raises(HTTPError) as refused:
            client.generate(request("b", n=2))
        assert refused.value.status == 429
        assert int(refused.value.headers["Retry-After"]) > 0
        third = client.generate(request("c"))
        third.close()
        first.close()
        assert client.in_flight == 0
        client.generate(request("d", n=2)).close()

    scenario(model, run, capacity=3)


def test_more_answers_than_the_queue_holds_run_alone(model):
    async def run(client):
        client.generate(request("a", n=9)).close()

    scenario(model, run, capacity=3)


def test_one_bad_request_of_several_leaves_nothing_behind(model):
    async def run(client):
        with pytest.raises(PromptTooLongError):
            client.generate(request("a"), request("b", prompt=[65] * 5000))
        assert client.in_flight == 0
        assert model.runner.active == []

    scenario(model, run)


def test_a_failing_engine_wakes_everybody(model):
    async def run(client):
        generation = client.generate(request("a"))
        waiting = asyncio.ensure_future(anext(generation))
        await asyncio.sleep(0)
        model.runner.fail()
        with pytest.raises(EngineError, match="test"):
            await waiting
        generation.close()
        assert client.in_flight == 0

    scenario(model, run)


def test_an_answer_that_fails_leaves_the_others_alone(model):
    async def run(client):
        broken, good = client.generate(request("a", n=2)), client.generate(request("b"))
        model.runner.break_answer("a")
        model.runner.step()
        with pytest.raises(HTTPError) as failed:
            await anext(broken)
        assert (failed.value.status, failed.value.code) == (500, "generation_failed")
        broken.close()
        assert [output.text for output in await anext(good)] == ["a"]
        good.close()
        assert client.in_flight == 0

    scenario(model, run)


def test_giving_up_wakes_everybody(model):
    async def run(client):
        generation = client.generate(request("a"), request("b"))
        client.fail_all("the server was stopped")
        with pytest.raises(EngineError, match="stopped"):
            await anext(generation)
        generation.close()
        assert sorted(model.runner.aborted) == ["a", "b"]

    scenario(model, run)


def test_outputs_after_the_end_are_dropped(model):
    async def run(client):
        generation = client.generate(request("a"))
        model.runner.step()
        generation.close()
        await asyncio.sleep(0)
        assert client.in_flight == 0

    scenario(model, run)
