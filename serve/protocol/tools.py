"""Tools, tool choice and response format of a chat request."""

from typing import Annotated, Any, Literal

from pydantic import Field, ModelWrapValidatorHandler, PrivateAttr, WithJsonSchema, model_validator

from serve.protocol.request_model import RequestModel
from serve.response_format import GUIDED, TYPES

ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/-]{1,128}$")]


class Function(RequestModel):
    """A function that the model may call."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(RequestModel):
    """A tool; functions are all there are."""

    type: Literal["function"]
    function: Function
    _given: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _keep(cls, given: Any, validate: ModelWrapValidatorHandler["Tool"]) -> "Tool":
        tool = validate(given)
        tool._given = given
        return tool

    @property
    def given(self) -> dict[str, Any]:
        """The object as the client wrote it, order and unknown fields included: what the model is shown."""
        return self._given


class FunctionName(RequestModel):
    """Names a function."""

    name: str


class NamedToolChoice(RequestModel):
    """Asks for a call of one function."""

    type: Literal["function"]
    function: FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice


ResponseFormat = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "required": ["type"],
            "properties": {
                "type": {"enum": list(TYPES)},
                "json_schema": {"type": "object", "properties": {"schema": {"type": "object"}}},
                "regex": {"type": "string"},
                "choice": {"type": "array", "items": {"type": "string"}, "minItems": 1},
                "lark": {"type": "string"},
                "grammar": {"type": "string"},
            },
        }
    ),
]
"""What the answer must be; ``serve.response_format`` reads it as the client wrote it."""


class GuidedFields(RequestModel):
    """vLLM's older way to say what the answer must be; at most one may be given."""

    response_format: ResponseFormat | None = None
    guided_json: dict[str, Any] | bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    def guided(self) -> dict[str, Any]:
        """The ``guided_*`` fields that are set."""
        fields = {name: getattr(self, name) for name in GUIDED}
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def demands_format(self) -> bool:
        """Whether any of the fields is set."""
        return self.response_format is not None or bool(self.guided())
