"""The request of ``/v1/chat/completions``."""

from typing import Annotated, Any

from pydantic import Field

from serve.protocol.request_model import PositiveCount
from serve.protocol.sampling import SamplingRequest, TopLogprobs
from serve.protocol.tools import GuidedFields, NamedToolChoice, Tool, ToolChoice


class ChatCompletionRequest(SamplingRequest, GuidedFields):
    """A conversation to go on with. Messages are checked where they are rendered, because templates differ in what they read."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_completion_tokens: PositiveCount | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    @property
    def tool_mode(self) -> str:
        """``none``, ``auto``, ``required``, or ``named``."""
        if not self.tools:
            return "none"
        if isinstance(self.tool_choice, NamedToolChoice):
            return "named"
        return self.tool_choice or "auto"

    @property
    def forced_tool(self) -> str | None:
        """The one function that must be called."""
        return self.tool_choice.function.name if isinstance(self.tool_choice, NamedToolChoice) else None

    def tool_dicts(self) -> list[dict[str, Any]]:
        """The tools as the client wrote them."""
        return [tool.given for tool in self.tools or []]
