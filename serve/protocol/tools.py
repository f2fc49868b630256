"""Tools, tool choice and response format of a chat request."""

from typing import Annotated, Any, Literal

from pydantic import Field, ModelWrapValidatorHandler, PrivateAttr, model_validator

from serve.protocol.request_model import RequestModel

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


class JsonSchemaFormat(RequestModel):
    """The schema of an answer."""

    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | bool | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(RequestModel):
    """What the answer must be. ``regex``, ``choice`` and ``lark`` are extensions: the field of the same name has the
    expression, the list of allowed answers, or the grammar."""

    type: Literal["text", "json_object", "json_schema", "regex", "regex_schema", "choice", "lark", "grammar"]
    json_schema: JsonSchemaFormat | None = None
    regex: str | None = None
    regex_schema: str | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    lark: str | None = None
    grammar: str | None = None
