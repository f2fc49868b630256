"""A conversation: input, history, interrupts, errors."""

import pytest
from support.fake_pipeline import Delta, FakePipeline

from jaxdeploy.cli.chat_loop import PROMPT, ChatLoop
from jaxdeploy.config.generation import GenerationConfig
from jaxdeploy.errors import EngineError, EngineStoppedError, PromptTooLongError


class Terminal:
    """Scripted lines in (an exception is raised instead), everything shown out; the end of the script is the end of input."""

    def __init__(self, *lines):
        self.lines = list(lines)
        self.prompts = []
        self.answers = ""
        self.notes = []
        self.interrupt_at = None

    def read_line(self, prompt):
        self.prompts.append(prompt)
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, type):
            raise line
        return line

    def write(self, text):
        self.answers += text
        if text == self.interrupt_at:
            raise KeyboardInterrupt


def converse(terminal, pipeline, system=None):
    loop = ChatLoop(pipeline, terminal.read_line, terminal.write, terminal.notes.append, GenerationConfig(), system)
    loop.run()
    return loop


def turns(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def test_answers_are_streamed_and_remembered():
    terminal, pipeline = Terminal("hi", "", "more", "", "exit"), FakePipeline(["Hel", "lo"], ["ok"])
    loop = converse(terminal, pipeline)
    assert terminal.answers == "Hello\nok\n"
    assert pipeline.asked == [turns("hi"), turns("hi", "Hello", "more")]
    assert loop.history == turns("hi", "Hello", "more", "ok")
    assert pipeline.aborted == 0


def test_a_message_may_have_several_lines_and_ends_with_an_empty_one():
    terminal, pipeline = Terminal("", "  ", "def f():", "  ", "    return 1", ""), FakePipeline(["x"])
    converse(terminal, pipeline)
    assert pipeline.asked == [turns("def f():\n  \n    return 1")]
    assert terminal.prompts == [PROMPT] * 3 + [""] * 3 + [PROMPT]


def test_end_of_input_ends_the_message_then_the_conversation():
    pipeline = FakePipeline(["4"])
    converse(Terminal("2+2"), pipeline)
    assert pipeline.asked == [turns("2+2")]


def test_end_starts_anew_and_keeps_the_system_prompt():
    terminal, pipeline = Terminal("a", "", "end", "b", "", "exit", "never", ""), FakePipeline(["1"], ["2"])
    converse(terminal, pipeline, system="be brief")
    system = {"role": "system", "content": "be brief"}
    assert pipeline.asked == [[system, *turns("a")], [system, *turns("b")]]
    assert terminal.lines == ["never", ""]


def test_commands_inside_a_message_are_text():
    pipeline = FakePipeline(["x"])
    converse(Terminal("where does it", "end", "exit", ""), pipeline)
    assert pipeline.asked == [turns("where does it\nend\nexit")]


def test_ctrl_c_while_the_engine_works_stops_that_answer_only():
    terminal, pipeline = Terminal("a", "", "b", ""), FakePipeline(["par", KeyboardInterrupt()], ["2"])
    loop = converse(terminal, pipeline)
    assert pipeline.aborted == 1
    assert pipeline.asked[1] == turns("a", "par", "b")
    assert loop.history == turns("a", "par", "b", "2")
    assert "\n(stopped)" in terminal.notes


def test_ctrl_c_while_a_piece_is_shown_aborts_the_request():
    terminal, pipeline = Terminal("a", "", "b", ""), FakePipeline(["par", "tial"], ["2"])
    terminal.interrupt_at = "par"
    loop = converse(terminal, pipeline)
    assert pipeline.aborted == 1
    assert loop.history == turns("a", "par", "b", "2")


def test_ctrl_c_before_the_first_token_forgets_the_message():
    pipeline = FakePipeline([KeyboardInterrupt()], ["2"])
    converse(Terminal("a", "", "b", ""), pipeline)
    assert pipeline.asked[1] == turns("b")


def test_ctrl_c_at_the_prompt_drops_the_lines_and_twice_leaves():
    terminal, pipeline = (
        Terminal("dropped", KeyboardInterrupt, "kept", "", *[KeyboardInterrupt] * 2),
        FakePipeline(["1"]),
    )
    converse(terminal, pipeline)
    assert pipeline.asked == [turns("kept")]
    assert terminal.lines == []
    assert terminal.prompts[-2:] == [PROMPT, PROMPT]


def test_a_message_that_does_not_fit_is_reported_and_forgotten():
    terminal = Terminal("long", "", "short", "")
    pipeline = FakePipeline([PromptTooLongError("9 tokens, session_len=8")], ["1"])
    loop = converse(terminal, pipeline)
    assert "error: 9 tokens, session_len=8" in terminal.notes[0]
    assert loop.history == turns("short", "1")


def test_an_engine_error_ends_the_conversation():
    with pytest.raises(EngineStoppedError):
        converse(Terminal("a", ""), FakePipeline([EngineStoppedError("stopped")]))
    with pytest.raises(EngineError):
        converse(Terminal("a", ""), FakePipeline(["x", Delta("", "error")]))


def test_a_cut_answer_is_marked():
    terminal = Terminal("a", "")
    converse(terminal, FakePipeline(["x", Delta("y", "length")]))
    assert terminal.answers == "xy\n"
    assert "--max-new-tokens=512" in terminal.notes[0]
