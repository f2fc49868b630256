"""The tutorial's function-calling program against a live server: two questions, a call of ``add`` and one of ``mul``."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
from support.fake_engine import FakeModel, FakeRunner
from support.internlm2_tokenizer import write_internlm2_tokenizer
from support.socket_server import listening
from support.tiny_checkpoints import CASES, write_checkpoint

from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.loading import load_engine
from jaxdeploy.text.chat_template_choice import choose_chat_template
from jaxdeploy.text.tokenizer import load_tokenizer
from serve.options import ServerOptions
from serve.tool_schema import normalize_schema

PROGRAM = Path(__file__).parents[1] / "support" / "tutorial_program.py"
HOST, KEY = "http://0.0.0.0:23333/v1", "YOUR_API_KEY"
NUMBER = '{"type": "int", "description": "A number"}'
PARAMETERS = f'{{"type": "object", "properties": {{"a": {NUMBER}, "b": {NUMBER}}}, "required": ["a", "b"]}}'
FIRST_PROMPT = (
    "<s><|im_start|>system name=<|plugin|>\n"
    f'[{{"name": "add", "description": "Compute the sum of two numbers", "parameters": {PARAMETERS}}}, '
    f'{{"name": "mul", "description": "Calculate the product of two numbers", "parameters": {PARAMETERS}}}]<|im_end|>\n'
    "<|im_start|>user\nCompute (3+5)*2<|im_end|>\n"
    "<|im_start|>assistant\n"
)
CALL = '<|action_start|><|plugin|>\n{{"name": "{}", "parameters": {{"a": {}, "b": {}}}}}<|action_end|>'


def second_prompt(said: str, result: object) -> str:
    """What the model reads once the program has computed the first call."""
    return (
        f"{FIRST_PROMPT}{said}<|im_end|>\n"
        f"<|im_start|>environment name=<|plugin|>\n3+5={result}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def run_program(address: str, key: str, *changes: tuple[str, str]) -> tuple[SimpleNamespace, list[str]]:
    """Runs the program; gives its variables at the end, and the lines it printed."""
    source = PROGRAM.read_text(encoding="utf-8")
    for old, new in ((HOST, f"{address}/v1"), (KEY, key), *changes):
        assert old in source
        source = source.replace(old, new)
    variables: dict[str, object] = {}
    output = io.StringIO()
    with redirect_stdout(output):
        exec(compile(source, str(PROGRAM), "exec"), variables)
    return SimpleNamespace(**variables), output.getvalue().splitlines()


def prompts_of(model) -> list[str]:
    """A list that gets the text of every prompt that reaches the engine, from now on."""
    prompts, submit = [], model.runner.submit

    def noted(request, sink):
        prompts.append(model.tokenizer.decode(request.prompt_ids, skip_special=False))
        submit(request, sink)

    model.runner.submit = noted
    return prompts


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random model of InternLM2's shape, with a tokenizer of its kind."""
    directory = tmp_path_factory.mktemp("internlm2")
    with pytest.MonkeyPatch.context() as patch:
        sizes = {"vocab_size": 512, "max_position_embeddings": 2048}
        patch.setitem(CASES, "internlm2_tutorial", {**CASES["internlm2"], **sizes})
        write_checkpoint("internlm2_tutorial", directory)
    write_internlm2_tokenizer(directory, vocab_size=512)
    return directory


class ScriptedModel(FakeModel):
    """InternLM2's tokenizer and chat template, and the answers that a good model gives."""

    def __init__(self, checkpoint, answers):
        left = iter(answers)
        super().__init__(lambda request, index: next(left), name="internlm2_5-7b-chat")
        self.runner.stop()
        self.tokenizer = load_tokenizer(checkpoint)
        self.config = SimpleNamespace(family="internlm2", vocab_size=512)
        self.chat_template = choose_chat_template("internlm2", self.tokenizer, None)
        self.runner = FakeRunner(self.tokenizer, self.script)


@pytest.mark.parametrize("said", ["", "I add first."])
def test_the_program_as_it_stands(checkpoint, said):
    model = ScriptedModel(checkpoint, [said + CALL.format("add", 3, 5), CALL.format("mul", 8, 2)])
    prompts = prompts_of(model)
    with listening(model, ServerOptions(api_keys=("secret",))) as address:
        variables, printed = run_program(address, "secret")
    assert prompts == [FIRST_PROMPT, second_prompt(said, 8)]
    assert printed[1] == "8"
    assert printed[3] == "16"
    assert json.loads(variables.func1_args) == {"a": 3, "b": 5}
    assert (variables.func1_name, variables.func2_name) == ("add", "mul")
    assert variables.messages[1]["content"] == (said or None)


def test_a_random_model_that_must_call(checkpoint):
    options = EngineConfig(
        max_batch_size=1, session_len=1024, cache_max_entry_count=64, max_prefill_token_num=64, seed=0
    )
    model = load_engine(checkpoint, options)
    prompts = prompts_of(model)
    with listening(model, ServerOptions(api_keys=("secret",))) as address:
        change = ("tools=tools\n)", 'tools=tools, tool_choice="required"\n)')
        variables, printed = run_program(address, "secret", change)
    assert prompts == [FIRST_PROMPT, second_prompt("", variables.func1_out)]
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in variables.tools}
    for name, arguments in (
        (variables.func1_name, variables.func1_args),
        (variables.func2_name, variables.func2_args),
    ):
        jsonschema.validate(json.loads(arguments), normalize_schema(schemas[name]))
    assert printed[1::2] == [str(variables.func1_out), str(variables.func2_out)]
    choice = variables.response.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert len(choice.message.tool_calls) == 1
