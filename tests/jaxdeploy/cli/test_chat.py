"""The chat command, with a pipeline that has no model."""

import io
import sys
from types import ModuleType

import pytest
from support.fake_pipeline import FakePipeline

from jaxdeploy.cli.main import main
from jaxdeploy.errors import CheckpointError, EngineError


@pytest.fixture
def chat(monkeypatch, capsys):
    """Runs ``jaxdeploy chat``: chat(*arguments, answers=[...], stdin="") -> status, stdout, stderr, built, pipe."""

    def run(*arguments, answers=(["Paris", "."],), stdin="", load_error=None):
        pipe, built = FakePipeline(*answers), {}

        def pipeline(model=None, backend_config=None, chat_template_config=None, progress=None):
            built.update(model=model, engine=backend_config, template=chat_template_config)
            if load_error:
                raise load_error
            progress("load", 512, 1024)
            progress("compile", 3, 3)
            return pipe

        module = ModuleType("jaxdeploy.pipeline")
        module.__dict__["pipeline"] = pipeline
        monkeypatch.setitem(sys.modules, "jaxdeploy.pipeline", module)
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as exit_:
            main(["chat", *arguments])
        shown = capsys.readouterr()
        return exit_.value.code, shown.out, shown.err, built, pipe

    return run


def test_prompt_prints_only_the_answer_on_stdout(chat):
    status, out, err, built, pipe = chat("--prompt", "What is the capital of France?")
    assert (status, out) == (0, "Paris.\n")
    assert "KV cache 16.0 KiB (16 pages x 64 tokens = 1,024 tokens)" in err
    assert built["model"] is None
    assert pipe.asked == [[{"role": "user", "content": "What is the capital of France?"}]]
    assert pipe.closed


def test_prompt_is_greedy_unless_a_temperature_is_given(chat):
    assert chat("--prompt", "x")[4].sampling[0].greedy
    sampled = chat("--prompt", "x", "--temperature", "0.5")[4].sampling[0]
    assert (sampled.greedy, sampled.temperature) == (False, 0.5)


def test_conversation_from_a_pipe(chat):
    status, out, _, _, pipe = chat(stdin="one\n\ntwo\n", answers=(["1"], ["2"]))
    assert (status, out) == (0, "1\n2\n")
    sampling = pipe.sampling[0]
    assert (sampling.greedy, sampling.temperature, sampling.top_p, sampling.top_k) == (False, 0.8, 0.8, 40)


def test_temperature_zero_is_greedy(chat):
    assert chat("--temperature", "0", stdin="x")[4].sampling[0].greedy


def test_prompt_from_stdin_keeps_its_empty_lines(chat):
    pipe = chat("--prompt", "-", stdin="one\n\ntwo\n")[4]
    assert pipe.asked[0][0]["content"] == "one\n\ntwo"


def test_options_in_both_spellings_reach_the_engine(chat):
    arguments = (
        "some/model --session_len 99 --cache-max-entry-count 128 --quant_policy 4 --model-format hf --dtype float32"
    )
    built = chat(*arguments.split(), "--tp=1", "--chat_template=t.jinja", stdin="")[3]
    engine = built["engine"]
    assert (built["model"], built["template"]) == ("some/model", "t.jinja")
    assert (engine.session_len, engine.quant_policy, engine.model_format, engine.dtype) == (99, 4, "hf", "float32")
    assert isinstance(engine.cache_max_entry_count, int)
    assert (engine.cache_max_entry_count, engine.max_batch_size) == (128, 1)


def test_sampling_options_reach_the_request(chat):
    arguments = (
        "--prompt x --top-p 0.5 --top_k 7 --min-p 0.1 --repetition-penalty 1.1 --max-new-tokens 9 --seed 3 --system s"
    )
    pipe = chat(*arguments.split())[4]
    sampling = pipe.sampling[0]
    assert (sampling.top_p, sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (0.5, 7, 0.1, 1.1)
    assert (sampling.max_new_tokens, sampling.random_seed) == (9, 3)
    assert pipe.asked[0][0] == {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tp", "2"], "error: tp=2"),
        (["--cache-max-entry-count", "much"], "error: --cache-max-entry-count='much'"),
        (["--top-p", "2"], "error: top_p=2.0"),
    ],
)
def test_a_bad_option_is_one_line_and_builds_nothing(chat, arguments, message):
    status, out, err, built, _ = chat(*arguments)
    assert (status, out, built) == (2, "", {})
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_a_bad_checkpoint_is_one_line_without_traceback(chat):
    status, _, err, _, _ = chat("m", load_error=CheckpointError("m: tensor x is\n  truncated"))
    assert status == 2
    assert err.splitlines()[-1] == "error: m: tensor x is truncated"
    assert "Traceback" not in err


def test_an_engine_error_exits_1(chat):
    status, _, err, _, pipe = chat("--prompt", "x", answers=([EngineError("out of luck")],))
    assert status == 1
    assert err.splitlines()[-1] == "error: out of luck"
    assert pipe.closed


def test_ctrl_c_during_a_single_answer_exits_130(chat):
    status, _, _, _, pipe = chat("--prompt", "x", answers=(["Par", KeyboardInterrupt()],))
    assert (status, pipe.aborted, pipe.closed) == (130, 1, True)
