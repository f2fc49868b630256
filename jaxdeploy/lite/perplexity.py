"""Perplexity of a model on a text, with the cache as the engine would store it."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from jaxdeploy import runtime
from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.demo import demo_model_path
from jaxdeploy.engine.limits import Limits
from jaxdeploy.engine.scoring import Scorer
from jaxdeploy.errors import RequestError
from jaxdeploy.kv_rotation import fit_rotation, with_rotation
from jaxdeploy.lite.head import with_rounded_head
from jaxdeploy.loading import tokenizer_of
from jaxdeploy.model.decoder import Decoder
from jaxdeploy.weights.checkpoint import open_checkpoint
from jaxdeploy.weights.loader import load_parameters

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class PerplexityResult:
    """How well a model predicts a text.

    Attributes:
        perplexity: exp of the mean negative log-likelihood.
        nll_per_token: that mean, natural log.
        standard_error: of the mean, over windows; relative error of the perplexity. NaN for a single window.
        window_nll: mean of each window, to compare two models window by window.
        window_tokens: that each window scored.
        tokens: that were scored.
        seconds: spent scoring, compilation included.
    """

    perplexity: float
    nll_per_token: float
    standard_error: float
    window_nll: tuple[float, ...]
    window_tokens: tuple[int, ...]
    tokens: int
    seconds: float


def evaluate_perplexity(
    model: str | Path | None,
    text: str,
    engine_config: EngineConfig | None = None,
    *,
    window: int = 1024,
    stride: int | None = None,
    max_tokens: int | None = None,
    progress: Progress | None = None,
) -> PerplexityResult:
    """Score a text in windows.

    Args:
        model: folder or GGUF file; None is the embedded demo model.
        text: plain text; no chat template is applied.
        engine_config: dtype, quant_policy and page size count here.
        window: tokens of context and prediction together.
        stride: tokens from window to window. A window scores only tokens that the one before didn't; smaller strides give each
            token more context and cost more. None is ``window``: no overlap.
        max_tokens: stop after so many tokens of the text.
        progress: called with ("load" bytes | "score" tokens, done, total).

    Raises:
        RequestError: the text is shorter than two tokens, or the window or stride can't work.
    """
    options = engine_config or EngineConfig()
    stride = stride or window
    if window < 2 or not 1 <= stride <= window:
        raise RequestError(f"{window=} must be at least 2 tokens and {stride=} from 1 to the window", param="stride")
    runtime.set_compile_cache(options.compile_cache)
    path = demo_model_path() if model is None else Path(model)
    checkpoint = with_rotation(open_checkpoint(path, options.model_format), options)
    try:
        tokenizer = tokenizer_of(checkpoint)
        limits = Limits.resolve(options, checkpoint.config, platform=jax.devices()[0].platform)
        report = (lambda done, total: progress("load", done, total)) if progress else None
        params = load_parameters(checkpoint, limits.dtype, progress=report)
    finally:
        checkpoint.close()
    ids = tokenizer.encode(text, add_special=True)[:max_tokens]
    if len(ids) < 2:
        raise RequestError(f"the text has {len(ids)} tokens; perplexity needs at least two", param="text")
    window = min(window, limits.session_len, len(ids))
    decoder = Decoder(checkpoint.config, limits.dtype)
    params = with_rounded_head(params, bits=options.lm_head_bits, tied=checkpoint.config.tie_word_embeddings)
    params = fit_rotation(decoder, params, tokenizer)
    scorer = Scorer(decoder, params, limits, quant_policy=options.quant_policy, longest=window)
    return _score(scorer, ids, window, min(stride, window), progress)


def _score(scorer: Scorer, ids: list[int], window: int, stride: int, progress: Progress | None) -> PerplexityResult:
    begun, scored, means, counts = time.perf_counter(), 1, [], []
    for start in range(0, len(ids), stride):
        part = ids[start : start + window]
        fresh = start + len(part) - scored  # tokens that no earlier window has scored
        if len(part) < 2 or fresh < 1:
            break
        losses = -scorer.token_logprobs(part)[-fresh:].astype(np.float64)
        means.append(float(losses.mean()))
        counts.append(len(losses))
        scored = start + len(part)
        if progress:
            progress("score", scored, len(ids))
    total = sum(counts)
    mean = float(np.average(means, weights=counts))
    deviation = np.array(means) - mean
    weights = np.array(counts) / total
    error = math.nan
    if len(means) > 1:
        error = float(np.sqrt(np.sum(weights**2 * deviation**2) * len(means) / (len(means) - 1)))
    return PerplexityResult(
        math.exp(mean), mean, error, tuple(means), tuple(counts), total, time.perf_counter() - begun
    )
