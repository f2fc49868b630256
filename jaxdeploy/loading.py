"""From the name of a model to an engine that runs: checkpoint, tokenizer, chat template, weights, compiled steps."""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from jaxdeploy import runtime
from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.config.model import ModelConfig
from jaxdeploy.demo import demo_model_path
from jaxdeploy.early_programs import EarlyPrograms
from jaxdeploy.engine.embedding import Embedder
from jaxdeploy.engine.engine import Engine
from jaxdeploy.engine.limits import Limits
from jaxdeploy.engine.request import TokenLogprobs
from jaxdeploy.engine.runner import EngineRunner
from jaxdeploy.engine.scoring import Scorer
from jaxdeploy.engine.step_programs import Progress
from jaxdeploy.kv_rotation import fit_rotation, with_rotation
from jaxdeploy.lite.head import with_rounded_head
from jaxdeploy.model.decoder import Decoder
from jaxdeploy.text.chat_template import ChatTemplate
from jaxdeploy.text.chat_template_choice import choose_chat_template
from jaxdeploy.text.gguf_tokenizer import tokenizer_from_gguf
from jaxdeploy.text.tokenizer import Tokenizer, load_tokenizer
from jaxdeploy.weights.checkpoint import Checkpoint, open_checkpoint
from jaxdeploy.weights.gguf_file import GGUFFile
from jaxdeploy.weights.loader import load_parameters


@dataclass
class LoadedModel:
    """A model that answers: its engine on a thread, and what turns text into tokens and back.

    Attributes:
        name: last part of the checkpoint's path, without a suffix.
        runner: takes requests from any thread.
        generation_defaults: the checkpoint's ``generation_config.json``, {} if it has none.
    """

    name: str
    config: ModelConfig
    runner: EngineRunner
    tokenizer: Tokenizer
    chat_template: ChatTemplate
    generation_defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def engine(self) -> Engine:
        """The engine; use ``runner`` to talk to it."""
        return self.runner.engine

    @cached_property
    def scorer(self) -> Scorer:
        """Scores given text with the engine's weights and its kind of cache."""
        engine = self.engine
        return Scorer(
            engine.executor.model, engine.executor.params, engine.limits, quant_policy=engine.options.quant_policy
        )

    @cached_property
    def embedder(self) -> Embedder:
        """Turns text into vectors with the engine's weights."""
        engine = self.engine
        return Embedder(
            engine.executor.model, engine.executor.params, engine.limits, quant_policy=engine.options.quant_policy
        )

    def prompt_logprobs(self, ids: Sequence[int], top: int) -> list[TokenLogprobs]:
        """Log-probabilities of ``ids[1:]``, each given what stands before it, with the ``top`` likeliest beside it."""
        return self.scorer.prompt_logprobs(list(ids), top)

    def close(self) -> None:
        """Stop the engine's thread; unfinished requests end with "error"."""
        self.runner.stop()


def load_engine(
    model: str | Path | None,
    options: EngineConfig | None = None,
    *,
    chat_template: str | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a checkpoint and get its engine ready (everything compiled).

    Args:
        model: folder or GGUF file; None is the embedded demo model.
        options: of the engine.
        chat_template: a built-in name or a file; see ``choose_chat_template``.
        progress: told about loading (bytes) and compiling (shapes).

    Raises:
        UserError: one of its kinds, with the way out in the message.
    """
    options = options or EngineConfig()
    runtime.set_compile_cache(options.compile_cache)
    path = demo_model_path() if model is None else Path(model)
    with closing(with_rotation(open_checkpoint(path, model_format=options.model_format), options)) as checkpoint:
        config = checkpoint.config
        tokenizer = tokenizer_of(checkpoint)
        template = choose_chat_template(config.family, tokenizer, chat_template)
        limits = Limits.resolve(options, config, platform=jax.devices()[0].platform)
        report = (lambda done, total: progress("load", done, total)) if progress else None
        with EarlyPrograms(config, options, limits, progress) as early:
            params = load_parameters(checkpoint, limits.dtype, progress=report)
            params = with_rounded_head(params, bits=options.lm_head_bits, tied=config.tie_word_embeddings)
            params = fit_rotation(Decoder(config, limits.dtype), params, tokenizer)
        defaults = _generation_defaults(checkpoint.directory)
    ends = template.stop_ids(tokenizer)
    engine = Engine(
        config, params, tokenizer, options, limits, extra_end_ids=ends, programs=early.programs(), progress=progress
    )
    name = path.resolve().name.removesuffix(".gguf")
    return LoadedModel(name, config, EngineRunner(engine), tokenizer, template, defaults)


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer that a checkpoint brings."""
    if isinstance(checkpoint.source, GGUFFile):
        return tokenizer_from_gguf(checkpoint.source.metadata, str(checkpoint.path))
    return load_tokenizer(checkpoint.directory)


def _generation_defaults(path: Path) -> dict[str, Any]:
    file = path / "generation_config.json"
    if not file.is_file():
        return {}
    found = json.loads(file.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}
