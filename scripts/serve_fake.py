"""The whole server around a model that costs nothing: what remains is what HTTP, parsing and streaming cost.

    python scripts/serve_fake.py --server-port 23333

Each step gives every running answer one token, as soon as the event loop has taken the tokens of the step before.
"""

import asyncio
import itertools
import sys
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Annotated, Any

import typer

from jaxdeploy.engine.request import FinishReason, Output, Request, TokenLogprobs
from jaxdeploy.errors import RequestError
from jaxdeploy.text.chat_template import ChatTemplate
from jaxdeploy.text.tokenizer import Tokenizer
from serve.api_server import Progress, run
from serve.options import ServerOptions
from serve.served_model import ServedModel

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
WORDS = [
    f" {word}".encode()
    for word in ("the", "cache", "holds", "keys", "and", "values", "of", "every", "token", "so", "far")
]
END = len(WORDS) + 256
SESSION_LEN = 1 << 20
BATCH_SIZE = 4096

Sink = Callable[[list[Output]], None]


class WordTokenizer(Tokenizer):
    """Reads bytes; answers are made of a few words."""

    vocab_size = END + 1
    bos_id = bos_token = chat_template = None
    eos_token = "<end>"
    eos_ids = (END,)
    special_ids = frozenset({END})
    special_tokens = {"<end>": END}  # noqa: RUF012, the base class's declaration
    prefix_ids = suffix_ids = ()

    def token_bytes(self, token: int) -> bytes:
        """A byte, a word, or the end."""
        return bytes([token]) if token < 256 else b"<end>" if token == END else WORDS[token - 256]

    def token_to_id(self, token: str) -> int | None:
        """Only the end has a name."""
        return self.special_tokens.get(token)

    def id_to_token(self, token: int) -> str | None:
        """The token's text."""
        return self.token_bytes(token).decode(errors="replace") if token < self.vocab_size else None

    def _encode(self, text: str) -> list[int]:
        return list(text.encode())

    def _drops_leading_space(self, previous: int | None) -> bool:
        return False


class InstantRunner:
    """``EngineRunner`` without an engine."""

    def __init__(self, words: Sequence[str]):
        self.alive = True
        self.steps = 0
        self._words = itertools.cycle(enumerate(words, start=256))
        self._running: dict[str, tuple[Request, Sink]] = {}
        self._made: dict[str, int] = {}
        self._work = threading.Condition()
        self._taken = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Answers in the making."""
        return len(self._running)

    def submit(self, request: Request, sink: Sink) -> None:
        """Answer a request, from the next step on."""
        self._loop = asyncio.get_running_loop()
        with self._work:
            self._made[request.id] = 0
            self._running[request.id] = (request, sink)
            self._work.notify()

    def abort(self, request_id: str) -> None:
        """Stop answering."""
        with self._work:
            self._running.pop(request_id, None)
            self._made.pop(request_id, None)

    def stop(self) -> None:
        """End the thread."""
        with self._work:
            self.alive = False
            self._work.notify()
        self._taken.set()
        self._thread.join()

    def _run(self) -> None:
        while self.alive:
            with self._work:
                self._work.wait_for(lambda: self._running or not self.alive)
                batches = self._step()
            for sink, outputs in batches.items():
                sink(outputs)
            if self._loop is not None:
                self._taken.clear()
                self._loop.call_soon_threadsafe(self._taken.set)
                self._taken.wait()

    def _step(self) -> dict[Sink, list[Output]]:
        token, word = next(self._words)
        batches: dict[Sink, list[Output]] = {}
        self.steps += 1
        for name, (request, sink) in list(self._running.items()):
            made = self._made[name] = self._made[name] + 1
            ends: FinishReason | None = "length" if made >= (request.config.max_new_tokens or 128) else None
            if ends:
                del self._running[name], self._made[name]
            size = len(request.prompt_ids)
            batches.setdefault(sink, []).extend(
                Output(name, index, word, (token,), finish_reason=ends, input_tokens=size, output_tokens=made)
                for index in range(request.config.n)
            )
        return batches


class InstantModel:
    """``LoadedModel`` without arrays."""

    def __init__(self):
        self.name = "fake"
        self.config: Any = SimpleNamespace(family="llama", vocab_size=END + 1)
        self.tokenizer: Tokenizer = WordTokenizer()
        self.chat_template = ChatTemplate(TEMPLATE, name="fake")
        self.generation_defaults: dict[str, Any] = {}
        self.runner: Any = InstantRunner([word.decode() for word in WORDS])

    @property
    def engine(self) -> Any:
        """What the metrics read."""
        return SimpleNamespace(
            session_len=SESSION_LEN,
            end_ids=frozenset({END}),
            limits=SimpleNamespace(batch_size=BATCH_SIZE),
            scheduler=SimpleNamespace(running=range(self.runner.running), waiting=(), preemptions=0),
            allocator=SimpleNamespace(num_pages=1, used_pages=0),
            executor=SimpleNamespace(steps=self.runner.steps, compile_misses=0),
        )

    @property
    def embedder(self) -> Any:
        """Refuses."""
        raise RequestError("the fake model has no embeddings")

    def prompt_logprobs(self, ids: Sequence[int], top: int) -> list[TokenLogprobs]:
        """Refuses."""
        raise RequestError("the fake model scores no prompts")

    def close(self) -> None:
        """Stop."""
        self.runner.stop()


def main(
    server_name: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    server_port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 23333,
) -> None:
    """Serve a fake model whose answers cost nothing."""

    def load(progress: Progress) -> ServedModel:
        return InstantModel()

    options = ServerOptions(server_name=server_name, server_port=server_port)
    run(options, load, announce=lambda line: print(line, file=sys.stderr, flush=True))


if __name__ == "__main__":
    typer.run(main)
