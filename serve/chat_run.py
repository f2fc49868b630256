"""A chat request on its way through the engine: what chat completions, responses and messages have in common."""

from dataclasses import dataclass
from typing import Any

from jaxdeploy.config.generation import GenerationConfig
from jaxdeploy.engine.request import Request
from jaxdeploy.errors import RequestError
from serve.answer_reader import AnswerReader
from serve.chat_prompt import ChatPrompt, answer_readers, chat_prompt, keeps_special_tokens
from serve.constraints import chat_constraint, check_ends
from serve.engine_client import Generation
from serve.protocol.chat import ChatCompletionRequest
from serve.protocol.sampling import generation_config
from serve.request_log import log_prompt
from serve.service import Service
from serve.state import ServerState
from serve.usage import usage


@dataclass(frozen=True, slots=True)
class ChatRun:
    """What the engine is working on for a chat request.

    Attributes:
        id: of the request.
        prompt: what the model goes on with.
        config: the engine's options.
        generation: the outputs; close it whatever happens.
        readers: of the answers, one each.
    """

    id: str
    prompt: ChatPrompt
    config: GenerationConfig
    generation: Generation
    readers: list[AnswerReader]

    def usage(self) -> dict[str, Any]:
        """Tokens so far, as OpenAI's ``usage`` object."""
        return usage(
            len(self.prompt.ids),
            sum(reader.tokens for reader in self.readers),
            cached_tokens=self.readers[0].cached_tokens,
            reasoning_tokens=sum(reader.reasoning_tokens for reader in self.readers),
        )


async def start_chat(state: ServerState, request: ChatCompletionRequest, request_id: str) -> ChatRun:
    """Render a conversation and hand it to the engine.

    Raises:
        RequestError: a field is wrong, or contradicts another.
        HTTPError: 429, too many requests wait already.
    """
    service = state.service
    check_fields(request)
    prompt = await prompt_of(service, request)
    config = chat_config(request, prompt, service)
    constraint = await chat_constraint(request, prompt, service)
    check_ends(config, constraint)
    log_prompt(state.options, request_id, prompt.text, len(prompt.ids))
    readers = answer_readers(
        service,
        prompt,
        config.n,
        one_call=request.parallel_tool_calls is False,
        skip_special_tokens=request.skip_special_tokens is not False,
    )
    generation = service.client.generate(Request(request_id, prompt.ids, config, constraint))
    return ChatRun(request_id, prompt, config, generation, readers)


async def prompt_of(service: Service, request: ChatCompletionRequest) -> ChatPrompt:
    """The conversation of a chat request, rendered and encoded.

    Raises:
        RequestError: a message is malformed, or the template refuses it.
    """
    return await chat_prompt(
        service,
        request.messages,
        tools=None if request.tool_mode == "none" else request.tool_dicts(),
        template_kwargs=request.chat_template_kwargs,
        add_generation_prompt=request.add_generation_prompt is not False,
        continue_final_message=bool(request.continue_final_message),
    )


def check_fields(request: ChatCompletionRequest) -> None:
    """Refuse fields that contradict each other.

    Raises:
        RequestError: they do.
    """
    if request.top_logprobs is not None and not request.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    forced = request.forced_tool
    names = [tool.function.name for tool in request.tools or ()]
    if not names and (forced is not None or request.tool_choice == "required"):
        raise RequestError("tool_choice demands a tool call, but there are no tools", param="tool_choice")
    if forced is not None and forced not in names:
        raise RequestError(f"tool_choice names {forced!r}, which is not among the tools {names}", param="tool_choice")


def chat_config(request: ChatCompletionRequest, prompt: ChatPrompt, service: Service) -> GenerationConfig:
    """The engine's options for a chat request.

    Raises:
        RequestError: one that can't work.
    """
    skip = request.skip_special_tokens is not False
    return generation_config(
        request,
        service.defaults,
        max_new_tokens=request.max_completion_tokens or request.max_tokens,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        skip_special_tokens=skip and not keeps_special_tokens(service, prompt),
        extra_stops=service.stop_words,
    )
