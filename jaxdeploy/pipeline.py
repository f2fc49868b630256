"""Offline inference in one call, with LMDeploy's names: ``pipeline(model)(prompts)``."""

import itertools
import queue
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.config.generation import GenerationConfig
from jaxdeploy.engine.request import Output, Request
from jaxdeploy.errors import EngineError, RequestError
from jaxdeploy.loading import LoadedModel, load_engine
from jaxdeploy.response import Response
from jaxdeploy.text.chat_template import encode_chat

Message = dict[str, Any]
Prompt = str | list[Message]
"""A text (put into the chat template as a user turn), or OpenAI messages."""

_request_numbers = itertools.count()


@dataclass
class Session:
    """A conversation: pass it to ``Pipeline.chat`` again to go on.

    Attributes:
        messages: OpenAI messages so far, answers included.
        response: the last answer.
    """

    messages: list[Message] = field(default_factory=list)
    response: Response | None = None

    @property
    def history(self) -> list[tuple[str, str]]:
        """(prompt, answer) pairs."""
        texts = [m["content"] for m in self.messages if m["role"] in ("user", "assistant")]
        return list(zip(texts[::2], texts[1::2], strict=False))


def pipeline(
    model: str | Path | None = None,
    backend_config: EngineConfig | None = None,
    chat_template_config: str | Path | None = None,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> "Pipeline":
    """Load a model for offline inference.

    Args:
        model: folder of a checkpoint or a GGUF file; None is the embedded demo model (extra ``demo``).
        backend_config: engine options.
        chat_template_config: built-in template name, or path of a jinja or JSON file; None takes the checkpoint's own.
        progress: called with ("load" | "compile", done, total).
    """
    template = None if chat_template_config is None else str(chat_template_config)
    return Pipeline(load_engine(model, backend_config, chat_template=template, progress=progress))


class Pipeline:
    """A loaded model. All calls may come from several threads; their requests share the engine's batches."""

    def __init__(self, model: LoadedModel):
        self.model = model

    def __enter__(self) -> "Pipeline":
        """Use as a context manager to stop the engine at the end."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop the engine."""
        self.close()

    def close(self) -> None:
        """Stop the engine; requests that still run end with "error"."""
        self.model.close()

    @property
    def engine(self):
        """The engine, for its ``memory`` and limits."""
        return self.model.engine

    @property
    def tokenizer(self):
        """The model's tokenizer."""
        return self.model.tokenizer

    @property
    def chat_template(self):
        """The chat template in use."""
        return self.model.chat_template

    @property
    def model_config(self):
        """The model's sizes and variants."""
        return self.model.config

    def __call__(
        self,
        prompts: Prompt | Sequence[Prompt],
        gen_config: GenerationConfig | Sequence[GenerationConfig] | None = None,
        *,
        do_preprocess: bool = True,
    ) -> Response | list[Response]:
        """Answer one prompt or many.

        Args:
            prompts: a text, OpenAI messages, or a list of either.
            gen_config: for all prompts, or one each. With n > 1 a prompt gives n responses in a row.
            do_preprocess: False feeds texts as they are, without the chat template.

        Returns:
            One Response for one prompt with n = 1, else a list.

        Raises:
            RequestError: a prompt or option that can't work; nothing was run then.
            EngineError: the engine failed.
        """
        done: dict[tuple[int, int], Response] = {}
        for delta in self.stream_infer(prompts, gen_config, do_preprocess=do_preprocess):
            key = (delta.index, delta.answer)
            if key in done:
                done[key].extend(delta)
            else:
                done[key] = delta
        responses = [done[key] for key in sorted(done)]
        return responses[0] if _is_single(prompts) and len(responses) == 1 else responses

    def stream_infer(
        self,
        prompts: Prompt | Sequence[Prompt],
        gen_config: GenerationConfig | Sequence[GenerationConfig] | None = None,
        *,
        do_preprocess: bool = True,
    ) -> Generator[Response]:
        """As calling the pipeline, but yields what each step adds. Closing the generator aborts what still runs."""
        many = [prompts] if _is_single(prompts) else list(prompts)
        requests = self._requests(many, gen_config, do_preprocess)
        numbers = {request.id: number for number, request in enumerate(requests)}
        answers_left = {request.id: request.config.n for request in requests}
        outputs: queue.SimpleQueue[list[Output]] = queue.SimpleQueue()
        try:
            for request in requests:
                self.model.runner.submit(request, outputs.put)
            while answers_left:
                for output in outputs.get():
                    if output.finish_reason == "error":
                        raise EngineError(output.error or "the engine failed")
                    if output.finish_reason is not None:
                        answers_left[output.request_id] -= 1
                        if not answers_left[output.request_id]:
                            del answers_left[output.request_id]
                    yield _response(output, numbers[output.request_id])
        finally:
            for request_id in answers_left:
                self.model.runner.abort(request_id)

    def chat(
        self,
        prompt: str,
        session: Session | None = None,
        gen_config: GenerationConfig | None = None,
        *,
        stream_response: bool = False,
    ) -> Session | Iterator[Response]:
        """One turn of a conversation.

        Args:
            prompt: what the user says.
            session: the conversation so far; None starts one. It is changed in place when the answer is complete.
            stream_response: yield parts of the answer; the session is complete when the iterator ends.

        Returns:
            The session, or an iterator over parts of the answer.
        """
        session = session or Session()
        parts = self._chat_parts(prompt, session, gen_config)
        if stream_response:
            return parts
        for _ in parts:
            pass
        return session

    def _chat_parts(self, prompt: str, session: Session, gen_config: GenerationConfig | None) -> Iterator[Response]:
        messages = [*session.messages, {"role": "user", "content": prompt}]
        whole = Response("")
        stream = self.stream_infer(messages, gen_config)
        try:
            for part in stream:
                whole.extend(part)
                yield part
        finally:
            stream.close()
            if whole.token_ids:  # a turn that got no answer at all leaves the conversation as it was
                session.messages = [*messages, {"role": "assistant", "content": whole.text}]
                session.response = whole

    def get_ppl(self, prompts: str | list[int] | Sequence[str | list[int]]) -> float | list[float]:
        """Mean negative log-likelihood per token of texts (natural log), as LMDeploy's method of this name.

        Args:
            prompts: texts, or token ids; at least two tokens each. No chat template is applied.

        Returns:
            One number for one prompt; its ``exp`` is the perplexity.
        """
        single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        many: Any = [prompts] if single else prompts
        losses = []
        for prompt in many:
            ids = self.tokenizer.encode(prompt, add_special=True) if isinstance(prompt, str) else list(prompt)
            if len(ids) < 2:
                raise RequestError(f"a text of {len(ids)} tokens has no perplexity; give at least two", param="prompts")
            losses.append(-float(np.mean(self.model.scorer.token_logprobs(ids), dtype=np.float64)))
        return losses[0] if single else losses

    def _requests(self, prompts, gen_config, do_preprocess: bool) -> list[Request]:
        if gen_config is None or isinstance(gen_config, GenerationConfig):
            configs = [gen_config or GenerationConfig()] * len(prompts)
        else:
            configs = list(gen_config)
        if len(configs) != len(prompts):
            raise RequestError(f"{len(configs)} generation configs for {len(prompts)} prompts", param="gen_config")
        requests = []
        for prompt, config in zip(prompts, configs, strict=True):
            request = Request(
                id=f"pipeline-{next(_request_numbers)}",
                prompt_ids=self.encode_prompt(prompt, do_preprocess=do_preprocess),
                config=self._with_bad_words(config),
            )
            self.engine.check(request)
            requests.append(request)
        return requests

    def encode_prompt(self, prompt: Prompt, *, do_preprocess: bool = True) -> list[int]:
        """The token ids that the engine gets for a prompt; ``do_preprocess`` applies the chat template to a text."""
        if isinstance(prompt, str):
            if not do_preprocess or self.chat_template.is_base:
                return self.tokenizer.encode(prompt, add_special=True)
            prompt = [{"role": "user", "content": prompt}]
        return encode_chat(self.tokenizer, self.chat_template.render(prompt))

    def _with_bad_words(self, config: GenerationConfig) -> GenerationConfig:
        ids = list(config.bad_token_ids)
        for word in config.bad_words:
            tokens = self.tokenizer.encode(word, add_special=False)
            if len(tokens) != 1:
                raise RequestError(
                    f"bad word {word!r} is {len(tokens)} tokens, only words of a single token can be forbidden",
                    param="bad_words",
                )
            ids += tokens
        return replace(config, bad_words=(), bad_token_ids=tuple(ids))


def _is_single(prompts: Prompt | Sequence[Prompt]) -> bool:
    return isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], dict))


def _response(output: Output, number: int) -> Response:
    return Response(
        text=output.text,
        generate_token_len=output.output_tokens,
        input_token_len=output.input_tokens,
        finish_reason=output.finish_reason,
        token_ids=list(output.token_ids),
        logprobs=list(output.logprobs),
        index=number,
        answer=output.index,
    )
