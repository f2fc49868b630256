"""A model for tests of the server: no arrays, answers by script, every step under control."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from jaxdeploy.engine.request import Output, Request, TokenLogprobs
from jaxdeploy.errors import EngineError, PromptTooLongError
from jaxdeploy.text.chat_template import ChatTemplate
from jaxdeploy.text.detokenizer import IncrementalDetokenizer
from jaxdeploy.text.stop_strings import StopStrings
from jaxdeploy.text.tokenizer import Tokenizer

TEMPLATE = (
    "{% if tools %}tools:{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL_TEMPLATE = TEMPLATE + "{# <tool_call> #}"
THINK_TEMPLATE = TOOL_TEMPLATE + "{# </think> #}"
SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>")
SESSION_LEN = 2000

Script = Callable[[Request, int], str]
"""The answer's text for a request and the index of the answer."""


class ByteTokenizer(Tokenizer):
    """A token is a byte, or one of a few special tokens from 256 on."""

    def __init__(self):
        self.special_tokens = {text: 256 + i for i, text in enumerate(SPECIAL_TOKENS)}
        self._texts = {token: text.encode() for text, token in self.special_tokens.items()}
        self.vocab_size = 256 + len(SPECIAL_TOKENS)
        self.bos_id = self.bos_token = self.chat_template = None
        self.eos_token = "<|im_end|>"
        self.eos_ids = (257,)
        self.special_ids = frozenset(self._texts)
        self.prefix_ids = self.suffix_ids = ()

    def token_bytes(self, token: int) -> bytes:
        return self._texts.get(token) or (bytes([token]) if token < 256 else b"")

    def token_to_id(self, token: str) -> int | None:
        return self.special_tokens.get(token)

    def id_to_token(self, token: int) -> str | None:
        return self.token_bytes(token).decode(errors="replace") if token < self.vocab_size else None

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        while text:
            special = next((s for s in SPECIAL_TOKENS if text.startswith(s)), None)
            ids += [self.special_tokens[special]] if special else text[0].encode()
            text = text[len(special or text[0]) :]
        return ids

    def _drops_leading_space(self, previous: int | None) -> bool:
        return False


@dataclass
class FakeAnswer:
    """One answer in the making."""

    request: Request
    index: int
    left: list[int]
    detokenizer: IncrementalDetokenizer
    stops: StopStrings | None
    made: int = 0


class FakeRunner:
    """Has EngineRunner's interface; gives each answer its next token, a step at a time, on a thread of its own.

    Attributes:
        free: steps run while it is set; clear it to step by hand with ``step``.
        cached_tokens: what each prompt is said to have had in the cache.
        submitted, aborted: what the server asked for.
    """

    def __init__(self, tokenizer: Tokenizer, script: Script):
        self.tokenizer, self.script = tokenizer, script
        self.submitted: list[Request] = []
        self.aborted: list[str] = []
        self.cached_tokens = 0
        self.active: list[FakeAnswer] = []
        self.free = threading.Event()
        self.free.set()
        self.alive = True
        self._sinks: dict[str, Callable[[list[Output]], None]] = {}
        self._changed = threading.Condition(threading.RLock())
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def submit(self, request: Request, sink: Callable[[list[Output]], None]) -> None:
        if not self.alive:
            raise EngineError("the engine failed: 'test'")
        if len(request.prompt_ids) >= SESSION_LEN:
            raise PromptTooLongError(
                f"the prompt has {len(request.prompt_ids)} tokens, the context {SESSION_LEN}", param="prompt"
            )
        with self._changed:
            self.submitted.append(request)
            self._sinks[request.id] = sink
            self.active += [self._answer(request, index) for index in range(request.config.n)]
            self._changed.notify()

    def abort(self, request_id: str) -> None:
        with self._changed:
            self.aborted.append(request_id)
            self.active = [answer for answer in self.active if answer.request.id != request_id]

    def stop(self) -> None:
        with self._changed:
            self.alive = False
            self._changed.notify()
        self.free.set()
        self._thread.join()

    def fail(self) -> None:
        """Die as an engine does whose step failed."""
        with self._changed:
            self.alive = False
            self._deliver(
                [
                    Output(
                        answer.request.id, answer.index, "", finish_reason="error", error="the engine failed: 'test'"
                    )
                    for answer in self.active
                ]
            )
            self.active = []
            self._changed.notify()

    def break_answer(self, request_id: str) -> None:
        """End the first answer of a request with an error, as a grammar that fails does."""
        with self._changed:
            broken = next(answer for answer in self.active if answer.request.id == request_id)
            self.active.remove(broken)
            self._deliver([Output(request_id, broken.index, "", finish_reason="error", error="the grammar failed")])

    def step(self) -> None:
        """Give every answer its next token."""
        with self._changed:
            outputs = [self._next(answer) for answer in self.active]
            ended = {(output.request_id, output.index) for output in outputs if output.finish_reason}
            self.active = [answer for answer in self.active if (answer.request.id, answer.index) not in ended]
            self._deliver(outputs)

    def _loop(self) -> None:
        while self.alive:
            self.free.wait()
            with self._changed:
                if not self.active:
                    self._changed.wait(0.05)
                elif self.free.is_set():
                    self.step()

    def _deliver(self, outputs: list[Output]) -> None:
        by_sink: dict[Any, list[Output]] = {}
        for output in outputs:
            by_sink.setdefault(self._sinks[output.request_id], []).append(output)
        for sink, batch in by_sink.items():
            sink(batch)

    def _answer(self, request: Request, index: int) -> FakeAnswer:
        config = request.config
        return FakeAnswer(
            request,
            index,
            self.tokenizer.encode(self.script(request, index), add_special=False),
            IncrementalDetokenizer(self.tokenizer, request.prompt_ids, config.skip_special_tokens),
            StopStrings(config.stop_words, config.include_stop_str_in_output) if config.stop_words else None,
        )

    def _next(self, answer: FakeAnswer) -> Output:
        config = answer.request.config
        token = answer.left.pop(0) if answer.left else self.tokenizer.eos_ids[0]
        answer.made += 1
        ends = token in self.tokenizer.eos_ids
        text = "" if ends else answer.detokenizer.add([token])
        reason = "stop" if ends else None
        if answer.stops is not None:
            text, stopped = answer.stops.feed(text)
            reason = "stop" if stopped is not None else reason
            text += answer.stops.flush() if ends else ""
        if reason is None and answer.made >= (config.max_new_tokens or SESSION_LEN):
            reason = "length"
        return Output(
            answer.request.id,
            answer.index,
            text,
            (token,),
            logprobs=() if config.logprobs is None else (_logprobs(token, config.logprobs),),
            finish_reason=reason,
            input_tokens=len(answer.request.prompt_ids),
            output_tokens=answer.made,
            cached_tokens=self.cached_tokens,
        )


def _logprobs(token: int, top: int) -> TokenLogprobs:
    return TokenLogprobs(token, -0.5, tuple(((token + i) % 256, -0.5 - i) for i in range(top)))


def _embed(ids: list[int], pooling: str) -> np.ndarray:
    """The counts of the bytes modulo 8, or the last one's alone; scaled to length 1."""
    counted = np.array(ids if pooling == "mean" else ids[-1:]) % 8
    counts = np.bincount(counted, minlength=8).astype(np.float32)
    return counts / np.linalg.norm(counts)


@dataclass
class FakeModel:
    """Has LoadedModel's interface."""

    script: Script
    template: str = TEMPLATE
    name: str = "fake"
    generation_defaults: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 256

    def __post_init__(self):
        self.tokenizer = ByteTokenizer()
        self.config = SimpleNamespace(family="llama", vocab_size=self.tokenizer.vocab_size)
        self.chat_template = ChatTemplate(self.template, name="fake")
        self.runner = FakeRunner(self.tokenizer, self.script)

    @property
    def engine(self) -> Any:
        running = len(self.runner.active)
        return SimpleNamespace(
            session_len=SESSION_LEN,
            end_ids=frozenset(self.tokenizer.eos_ids),
            limits=SimpleNamespace(batch_size=self.batch_size),
            scheduler=SimpleNamespace(running=[None] * running, waiting=[], preemptions=0),
            allocator=SimpleNamespace(num_pages=10, used_pages=running),
            executor=SimpleNamespace(steps=0),
        )

    @property
    def embedder(self) -> Any:
        return SimpleNamespace(embed=_embed)

    def prompt_logprobs(self, ids: Sequence[int], top: int) -> list[TokenLogprobs]:
        return [_logprobs(token, top) for token in ids[1:]]

    def close(self) -> None:
        self.runner.stop()
