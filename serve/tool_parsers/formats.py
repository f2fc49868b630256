"""How each family writes tool calls, as data: for the grammar of ``tool_choice``, and for the detokenizer."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """The text of one or more calls::

        begin  call_begin BODY call_end  (separator call_begin BODY call_end)*  end

    with BODY by ``style``:

    - ``json``:  ``{"<name_key>": NAME, "<arguments_key>": ARGUMENTS}``
    - ``named``: ``NAME name_end ARGUMENTS`` (ARGUMENTS a JSON object)
    - ``xml``:   ``NAME name_end (parameter_begin KEY key_end VALUE parameter_end)*``
      (VALUE: a string as it is, anything else as JSON)

    Attributes:
        triggers: in free text, any of these begins a call. Empty ``call_begin``: so does a ``{`` that opens the answer.
        tags: the marks of the format. Tokenizers hold most of them as special tokens; they must survive detokenization.
        parallel: whether the family was trained to write several calls in a turn.
    """

    name: str
    style: Literal["json", "named", "xml"]
    triggers: tuple[str, ...]
    tags: tuple[str, ...]
    begin: str = ""
    call_begin: str = ""
    call_end: str = ""
    separator: str = ""
    end: str = ""
    name_key: str = "name"
    arguments_key: str = "arguments"
    name_end: str = ""
    parameter_begin: str = ""
    key_end: str = ""
    parameter_end: str = ""
    parallel: bool = True

    def render(self, calls: Iterable[tuple[str, dict]]) -> str:
        """The text of ``calls`` (name, arguments), as a model of this family is trained to write it."""
        bodies = (f"{self.call_begin}{self._body(name, arguments)}{self.call_end}" for name, arguments in calls)
        return f"{self.begin}{self.separator.join(bodies)}{self.end}"

    def _body(self, name: str, arguments: dict) -> str:
        if self.style == "json":
            return _json({self.name_key: name, self.arguments_key: arguments})
        if self.style == "named":
            return f"{name}{self.name_end}{_json(arguments)}"
        values = ((key, value if isinstance(value, str) else _json(value)) for key, value in arguments.items())
        return f"{name}{self.name_end}" + "".join(
            f"{self.parameter_begin}{key}{self.key_end}{value}{self.parameter_end}" for key, value in values
        )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


INTERNLM2 = ToolFormat(
    name="internlm2",
    style="json",
    triggers=("<|action_start|>",),
    tags=("<|action_start|>", "<|action_end|>", "<|plugin|>", "<|interpreter|>"),
    call_begin="<|action_start|><|plugin|>\n",
    call_end="<|action_end|>",
    arguments_key="parameters",
    parallel=False,  # the model stops on <|action_end|>
)
HERMES = ToolFormat(
    name="hermes",
    style="json",
    triggers=("<tool_call>",),
    tags=("<tool_call>", "</tool_call>"),
    call_begin="<tool_call>\n",
    call_end="\n</tool_call>",
    separator="\n",
)
QWEN3_CODER = ToolFormat(
    name="qwen3_coder",
    style="xml",
    triggers=("<tool_call>", "<function="),
    tags=("<tool_call>", "</tool_call>"),
    call_begin="<tool_call>\n<function=",
    call_end="</function>\n</tool_call>",
    separator="\n",
    name_end=">\n",
    parameter_begin="<parameter=",
    key_end=">\n",
    parameter_end="\n</parameter>\n",
)
LLAMA3 = ToolFormat(
    name="llama3",
    style="json",
    triggers=("<|python_tag|>",),
    tags=("<|python_tag|>",),
    separator="; ",
    arguments_key="parameters",
    parallel=False,  # Meta: 3.1 and 3.2 are not trained for parallel calls
)
MISTRAL = ToolFormat(
    name="mistral",
    style="json",
    triggers=("[TOOL_CALLS]",),
    tags=("[TOOL_CALLS]",),
    begin="[TOOL_CALLS][",
    separator=", ",
    end="]",
)
MISTRAL_NAMED = ToolFormat(
    name="mistral_named",
    style="named",
    triggers=("[TOOL_CALLS]",),
    tags=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
    call_begin="[TOOL_CALLS]",
    name_end="[ARGS]",
)
DEEPSEEK_V3 = ToolFormat(
    name="deepseek_v3",
    style="named",
    triggers=("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
    tags=(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
    ),
    begin="<｜tool▁calls▁begin｜>",
    call_begin="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    name_end="\n```json\n",
    call_end="\n```<｜tool▁call▁end｜>",
    separator="\n",
    end="<｜tool▁calls▁end｜>",
)
DEEPSEEK_V31 = ToolFormat(
    name="deepseek_v31",
    style="named",
    triggers=DEEPSEEK_V3.triggers,
    tags=DEEPSEEK_V3.tags,
    begin="<｜tool▁calls▁begin｜>",
    call_begin="<｜tool▁call▁begin｜>",
    name_end="<｜tool▁sep｜>",
    call_end="<｜tool▁call▁end｜>",
    end="<｜tool▁calls▁end｜>",
)
GLM45 = ToolFormat(
    name="glm45",
    style="xml",
    triggers=("<tool_call>",),
    tags=("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    call_begin="<tool_call>",
    call_end="</tool_call>",
    separator="\n",
    name_end="\n",
    parameter_begin="<arg_key>",
    key_end="</arg_key>\n<arg_value>",
    parameter_end="</arg_value>\n",
)
