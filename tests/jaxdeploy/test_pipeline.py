"""The Python API on the demo model: prompts of every kind, streams, conversations, errors."""

import math

import pytest

from jaxdeploy import EngineConfig, GenerationConfig, Response, pipeline
from jaxdeploy.engine.runner import EngineRunner
from jaxdeploy.errors import EngineError, EngineStoppedError, PromptTooLongError, RequestError
from jaxdeploy.pipeline import Pipeline, Session

pytestmark = pytest.mark.demo

QUESTION = "What is the capital of France?"
SHORT = GenerationConfig(max_new_tokens=12)


@pytest.fixture(scope="module")
def pipe():
    options = EngineConfig(session_len=256, max_batch_size=4, max_prefill_token_num=64)
    with pipeline(None, options) as loaded:
        yield loaded


def test_one_prompt_gives_one_response(pipe):
    response = pipe(QUESTION, SHORT)
    assert isinstance(response, Response)
    assert response.text == "The capital of France is Paris."
    assert response.finish_reason == "stop"
    assert response.generate_token_len == len(response.token_ids) == 8
    assert response.input_token_len > 10


def test_messages_are_one_prompt_and_lists_are_many(pipe):
    messages = [{"role": "user", "content": QUESTION}]
    one = pipe(messages, SHORT)
    assert isinstance(one, Response)
    assert one.text == pipe(QUESTION, SHORT).text
    several = pipe([messages, "Who wrote Hamlet?"], SHORT)
    assert [r.index for r in several] == [0, 1]
    assert several[0].text == one.text
    assert several[1].text == pipe("Who wrote Hamlet?", SHORT).text


def test_raw_text_skips_the_template(pipe):
    raw = pipe("The capital of France is", GenerationConfig(max_new_tokens=1), do_preprocess=False)
    assert raw.text.strip() == "Paris"
    assert raw.input_token_len == len(pipe.tokenizer.encode("The capital of France is", add_special=True))


def test_stream_adds_up_to_the_answer(pipe):
    parts = list(pipe.stream_infer([QUESTION, "Who wrote Hamlet?"], SHORT))
    whole = pipe([QUESTION, "Who wrote Hamlet?"], SHORT)
    for index, response in enumerate(whole):
        mine = [part for part in parts if part.index == index]
        assert "".join(part.text for part in mine) == response.text
        assert [part.finish_reason for part in mine][-1] == response.finish_reason
        assert all(part.finish_reason is None for part in mine[:-1])


def test_several_answers(pipe):
    config = GenerationConfig(n=3, max_new_tokens=8, do_sample=True, temperature=1.5, top_k=0, random_seed=1)
    answers = pipe("Tell me something.", config)
    assert [(r.index, r.answer) for r in answers] == [(0, 0), (0, 1), (0, 2)]
    assert len({r.text for r in answers}) == 3


def test_closing_a_stream_frees_its_pages(pipe):
    stream = pipe.stream_infer("Write a long story.", GenerationConfig(max_new_tokens=200, ignore_eos=True))
    next(stream)
    stream.close()
    pipe(QUESTION, SHORT)  # the abort is handled before the next request's first step
    assert pipe.engine.allocator.used_pages == 0


def test_conversation_remembers(pipe):
    session = pipe.chat("My name is Ada.", gen_config=SHORT)
    assert isinstance(session, Session)
    parts = pipe.chat("What did I say?", session, SHORT, stream_response=True)
    text = "".join(part.text for part in parts)
    assert session.response is not None
    assert session.response.text == text
    assert [prompt for prompt, _ in session.history] == ["My name is Ada.", "What did I say?"]
    assert session.response.input_token_len > len(pipe.encode_prompt("What did I say?", do_preprocess=True))


def test_perplexity_of_likely_and_unlikely_text(pipe):
    likely, unlikely = pipe.get_ppl(["The cat sat on the mat.", "Mat the on sat cat the."])
    assert 0 < likely < unlikely
    assert math.isclose(pipe.get_ppl("The cat sat on the mat."), likely, rel_tol=1e-5)
    with pytest.raises(RequestError, match="at least two"):
        pipe.get_ppl([[5]])


def test_bad_words_never_come(pipe):
    free = pipe(QUESTION, SHORT).text
    assert " Paris" in free
    assert " Paris" not in pipe(QUESTION, GenerationConfig(max_new_tokens=12, bad_words=(" Paris",))).text
    with pytest.raises(RequestError, match=r"is \d tokens"):
        pipe(QUESTION, GenerationConfig(bad_words=("antidisestablish",)))


def test_errors_name_what_is_wrong_and_run_nothing(pipe):
    steps = pipe.engine.executor.steps
    with pytest.raises(PromptTooLongError, match="context of 256"):
        pipe([QUESTION, "word " * 300], SHORT)
    with pytest.raises(RequestError, match="2 generation configs for 1 prompts"):
        pipe(QUESTION, [SHORT, SHORT])
    with pytest.raises(RequestError, match=r"top_p=1\.5 must be in \(0, 1\]"):
        GenerationConfig(top_p=1.5)
    assert pipe.engine.executor.steps == steps


class _Broken:
    """An engine whose step fails."""

    def __init__(self, engine):
        self._engine = engine

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def step(self):
        raise RuntimeError("the device is gone")


def test_a_failing_step_ends_every_request_with_an_error(pipe, caplog):
    runner = EngineRunner(_Broken(pipe.engine))
    model = pipe.model.__class__("broken", pipe.model_config, runner, pipe.tokenizer, pipe.chat_template)
    broken = Pipeline(model)
    with pytest.raises(EngineError, match="the device is gone"):
        broken(QUESTION, SHORT)
    assert not runner.alive
    with pytest.raises(EngineError, match="the device is gone"):
        broken(QUESTION, SHORT)
    for request_id in list(pipe.engine.unfinished()):
        pipe.engine.abort(request_id)


def test_a_stopped_engine_refuses(pipe):
    runner = EngineRunner(pipe.engine)
    runner.stop()
    model = pipe.model.__class__("stopped", pipe.model_config, runner, pipe.tokenizer, pipe.chat_template)
    with pytest.raises(EngineStoppedError):
        Pipeline(model)(QUESTION, SHORT)
