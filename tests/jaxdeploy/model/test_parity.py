"""Every architecture and RoPE kind against transformers' logits, through the paged cache, in prefill and in decode."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.goldens import load_golden
from support.tiny_checkpoints import CASES, write_checkpoint

from jaxdeploy import functional as jd
from jaxdeploy.cache.kv_pages import KVPages
from jaxdeploy.model.decoder import Decoder
from jaxdeploy.model.inputs import ModelInputs
from jaxdeploy.weights.checkpoint import open_checkpoint
from jaxdeploy.weights.loader import load_parameters

PAGE = 16
TOLERANCE = 1e-4
"""Relative to the largest logit, fp32."""


@pytest.fixture(scope="module", params=sorted(CASES))
def case(request, tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp(request.param)
    write_checkpoint(request.param, folder)
    checkpoint = open_checkpoint(folder)
    try:
        params = load_parameters(checkpoint, "float32")
    finally:
        checkpoint.close()
    return Decoder(checkpoint.config), params, load_golden(request.param)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def all_logits(decoder: Decoder, params, tokens: np.ndarray) -> np.ndarray:
    """Logits after each token, the whole sequence in one prefill over shuffled pages."""
    length = len(tokens)
    width = -(-length // PAGE)

    @jax.jit
    def run(params, tokens):
        pages = KVPages.create(decoder.config, width + 2, page_size=PAGE)
        inputs = ModelInputs(
            tokens=tokens,
            positions=jnp.arange(length, dtype=jnp.int32),
            rows=jnp.zeros(length, jnp.int32),
            query_start=jnp.array([0, length], jnp.int32),
            context_lens=jnp.array([length], jnp.int32),
            rope_lengths=jnp.array([length], jnp.int32),
            block_table=jnp.arange(width, 0, -1, dtype=jnp.int32)[None],
        )
        hidden, _ = decoder.apply({"params": params}, inputs, pages)
        return decoder.apply({"params": params}, hidden, method=Decoder.logits)

    return np.asarray(run(params, jnp.asarray(tokens, jnp.int32)))


def test_prefill_matches_transformers(case):
    decoder, params, golden = case
    assert error(all_logits(decoder, params, golden.tokens), golden.logits) < TOLERANCE


def test_decode_steps_match_transformers(case):
    decoder, params, golden = case
    length = len(golden.tokens)
    # One page of exactly the sequence: the cache's capacity is the length that dynamic RoPE goes by.
    cache = jd.new_cache(decoder, batch=1, length=length, page_size=length)
    tokens = jnp.asarray(golden.tokens, jnp.int32)
    prompt = tokens[None, : golden.prefill]
    logits, cache = jd.prefill(decoder, params, cache, prompt, jnp.array([golden.prefill], jnp.int32))
    found = [np.asarray(logits[0])]
    for token in tokens[golden.prefill :]:
        logits, cache = jd.decode_step(decoder, params, cache, token[None])
        found.append(np.asarray(logits[0]))
    assert len(found) == 17
    assert error(np.stack(found), golden.logits[golden.prefill - 1 :]) < TOLERANCE
