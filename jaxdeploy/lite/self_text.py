"""Calibration text that the model writes itself, for where no dataset can be reached."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from jaxdeploy import functional as jd
from jaxdeploy.lite.calibration_data import Samples
from jaxdeploy.lite.progress import Progress
from jaxdeploy.lite.recipe import SELF
from jaxdeploy.model.decoder import Decoder
from jaxdeploy.text.tokenizer import Tokenizer
from jaxdeploy.weights.checkpoint import Checkpoint
from jaxdeploy.weights.loader import load_parameters

_BATCH = 16  # sequences that are sampled at once


def sample_self(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    *,
    samples: int,
    length: int,
    held_out: int,
    seed: int,
    dtype: str,
    progress: Progress | None = None,
) -> Samples:
    """Sample sequences at temperature 1, each begun by BOS (if there is one) and a random ordinary token.

    The whole model is loaded for it, unlike for the quantization itself.

    Args:
        samples, length, held_out: S, T and E of the result.
        dtype: of weights and activations.
        progress: called with ("sample", sequences done, in total).
    """
    decoder = Decoder(checkpoint.config, dtype)
    params = load_parameters(checkpoint, dtype)
    total = samples + held_out
    random = np.random.default_rng(seed)
    allowed = _ordinary_tokens(tokenizer, checkpoint.config.vocab_size)
    parts = []
    for start in range(0, total, _BATCH):
        count = min(_BATCH, total - start)
        firsts = [] if tokenizer.bos_id is None else [np.full(count, tokenizer.bos_id)]
        firsts.append(random.choice(np.flatnonzero(allowed), count))
        prompt = jnp.asarray(np.stack(firsts, axis=1)[:, :length], jnp.int32)
        key = jax.random.key(int(random.integers(2**31)))
        parts.append(np.asarray(_sample(decoder, length, params, prompt, jnp.asarray(allowed), key)))
        if progress:
            progress("sample", start + count, total)
    tokens = np.concatenate(parts)
    return Samples(tokens[:samples], tokens[samples:], SELF)


def _ordinary_tokens(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    """True for tokens that text is made of: an end-of-text token in the middle would make two short samples of one."""
    allowed = np.zeros(vocab_size, bool)
    allowed[: tokenizer.vocab_size] = True
    special = [token for token in (*tokenizer.special_ids, *tokenizer.eos_ids) if token < vocab_size]
    allowed[special] = False
    return allowed


@partial(jax.jit, static_argnums=(0, 1))
def _sample(
    decoder: Decoder, length: int, params, prompt: Int32[jax.Array, "B P"], allowed: jax.Array, key: jax.Array
) -> Int32[jax.Array, "B T"]:
    batch, given = prompt.shape
    cache = jd.new_cache(decoder, batch, length)
    logits, cache = jd.prefill(decoder, params, cache, prompt, jnp.full(batch, given, jnp.int32))

    def step(carry, step_key):
        logits, cache = carry
        tokens = jax.random.categorical(step_key, jnp.where(allowed, logits, -jnp.inf)).astype(jnp.int32)
        return jd.decode_step(decoder, params, cache, tokens), tokens

    _, tokens = jax.lax.scan(step, (logits, cache), jax.random.split(key, length - given))
    return jnp.concatenate([prompt, tokens.T], axis=1)
