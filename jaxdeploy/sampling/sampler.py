"""From logits to tokens, on the device, in the order that everyone uses.

penalties -> logit bias, bad tokens, held-back end tokens -> grammar mask -> temperature -> top-k -> top-p -> min-p -> sample.

Parts that no row of the batch asked for are skipped at run time (``lax.cond``), so one compiled step serves all requests.
A row's tokens do not depend on its neighbours: every part works in the vocabulary's own order, and the noise of a row comes from
its own seed and the number of tokens it has made.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from jaxdeploy.config.generation import MAX_LOGPROBS
from jaxdeploy.sampling.slots import SlotOptions, SlotState


class Sampled(NamedTuple):
    """One token per row and, for rows that asked, log-probabilities under the model's own distribution.

    ``logprobs`` and ``top_*`` are zero if no row of the batch asked.
    """

    tokens: Int32[Array, " B"]
    logprobs: Float[Array, " B"]
    top_tokens: Int32[Array, "B top"]
    top_logprobs: Float[Array, "B top"]


def sample(
    logits: Float[Array, "B V"], state: SlotState, slots: Int32[Array, " B"], made: Int32[Array, " B"]
) -> Sampled:
    """Choose the next token of each row.

    Args:
        logits: the model's scores, float32.
        state: of all slots, this step's tokens counted.
        slots: each row's slot.
        made: tokens that each row's answer has so far.
    """
    options = jax.tree.map(lambda leaf: leaf[slots], state.options)
    edited = _penalize(logits, options, state, slots)
    edited = _add_bias(edited, options)
    edited = _hold_back_ends(edited, options, made)
    edited = _apply_grammar(edited, state, slots)
    tokens = lax.cond(
        jnp.any(options.temperature > 0),
        _draw,
        lambda x, *_: jnp.argmax(x, axis=-1).astype(jnp.int32),
        edited,
        options,
        made,
    )
    return Sampled(tokens, *_report(logits, tokens, options))


def _penalize(logits, options: SlotOptions, state: SlotState, slots):
    """Repetition (CTRL, arXiv:1909.05858) over prompt and answer; presence and frequency (OpenAI) over the answer."""

    def apply(x):
        answer = state.in_answer[slots]
        seen = state.in_prompt[slots] | (answer > 0)
        factor = options.repetition_penalty[:, None]
        x = jnp.where(seen, jnp.where(x < 0, x * factor, x / factor), x)
        x = x - options.presence_penalty[:, None] * (answer > 0)
        return x - options.frequency_penalty[:, None] * answer

    wanted = (options.repetition_penalty != 1) | (options.presence_penalty != 0) | (options.frequency_penalty != 0)
    return lax.cond(jnp.any(wanted), apply, lambda x: x, logits)


def _add_bias(logits, options: SlotOptions):
    def apply(x):
        rows = jnp.arange(x.shape[0], dtype=jnp.int32)[:, None]
        ids = jnp.where(options.bias_ids < 0, x.shape[1], options.bias_ids)
        return x.at[rows, ids].add(options.bias_values, mode="drop")

    return lax.cond(jnp.any(options.bias_ids >= 0), apply, lambda x: x, logits)


def _hold_back_ends(logits, options: SlotOptions, made):
    early = made < options.min_new_tokens

    def apply(x):
        rows = jnp.arange(x.shape[0], dtype=jnp.int32)[:, None]
        ids = jnp.where(early[:, None] & (options.stop_ids >= 0), options.stop_ids, x.shape[1])
        return x.at[rows, ids].set(-jnp.inf, mode="drop")

    return lax.cond(jnp.any(early), apply, lambda x: x, logits)


def _apply_grammar(logits, state: SlotState, slots):
    constrained = state.has_mask[slots]

    def apply(x):
        words = state.mask[slots]
        bits = (words[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
        allowed = bits.reshape(words.shape[0], -1)[:, : x.shape[1]] == 1
        return jnp.where(allowed | ~constrained[:, None], x, -jnp.inf)

    return lax.cond(jnp.any(constrained), apply, lambda x: x, logits)


def _draw(logits, options: SlotOptions, made) -> Int32[Array, " B"]:
    """Gumbel-max sampling; rows of temperature 0 take the most likely token."""
    greedy = options.temperature == 0
    # Only differences count: taken from the highest down, they do not overflow however low the temperature is.
    highest = jnp.max(logits, axis=-1, keepdims=True)
    below = logits - jnp.where(jnp.isfinite(highest), highest, 0.0)
    scaled = below / jnp.maximum(jnp.where(greedy, 1.0, options.temperature), jnp.finfo(jnp.float32).tiny)[:, None]
    filters = ((options.top_k > 0) | (options.top_p < 1) | (options.min_p > 0)) & ~greedy
    keep = lax.cond(jnp.any(filters), _kept, lambda x, _: jnp.ones(x.shape, bool), scaled, options)

    def noise(seed, step):
        return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), step), (logits.shape[1],))

    noisy = jnp.where(keep, scaled + jax.vmap(noise)(options.seed, made), -jnp.inf)
    return jnp.argmax(jnp.where(greedy[:, None], logits, noisy), axis=-1).astype(jnp.int32)


def _kept(scaled: Float[Array, "B V"], options: SlotOptions) -> Bool[Array, "B V"]:
    """Which tokens top-k, then top-p among those, then min-p leave; the most likely always stays."""
    order = jnp.argsort(scaled, axis=-1, descending=True)
    ranked = jnp.take_along_axis(scaled, order, axis=-1)
    rank = jnp.arange(scaled.shape[1], dtype=jnp.int32)[None]
    keep = (options.top_k[:, None] == 0) | (rank < options.top_k[:, None])
    probabilities = jax.nn.softmax(jnp.where(keep, ranked, -jnp.inf), axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    top_p = options.top_p[:, None]
    keep &= (before < top_p) | (top_p >= 1)  # the sum may round to a little over 1
    keep &= probabilities >= options.min_p[:, None] * probabilities[:, :1]
    keep = keep.at[:, 0].set(True)
    rows = jnp.arange(scaled.shape[0], dtype=jnp.int32)[:, None]
    return jnp.zeros_like(keep).at[rows, order].set(keep)


def _report(logits, tokens, options: SlotOptions):
    top = min(MAX_LOGPROBS, logits.shape[1])

    def compute(x):
        logprobs = jax.nn.log_softmax(x, axis=-1)
        chosen = jnp.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
        values, ids = lax.top_k(logprobs, top)
        return chosen, ids.astype(jnp.int32), values

    def skip(x):
        b = x.shape[0]
        return jnp.zeros(b, x.dtype), jnp.zeros((b, top), jnp.int32), jnp.zeros((b, top), x.dtype)

    return lax.cond(jnp.any(options.logprobs), compute, skip, logits)
