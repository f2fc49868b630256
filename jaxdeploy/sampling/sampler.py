"""From logits to tokens, on the device, in the order that everyone uses.

penalties -> logit bias, bad tokens, held-back end tokens -> grammar mask -> temperature -> top-k -> top-p -> min-p -> sample.

What most batches need (see Extent) is compiled without branches. The rest is one program, which skips at run time (``lax.cond``)
what no row asked for.
A row's tokens do not depend on its neighbours: every part works in the vocabulary's own order, and the noise of a row comes from
its own seed and the number of tokens it has made.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from jaxdeploy.config.generation import MAX_LOGPROBS
from jaxdeploy.sampling.extent import Extent
from jaxdeploy.sampling.ranking import descending_keys, keep_until
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
    logits: Float[Array, "B V"],
    state: SlotState,
    slots: Int32[Array, " B"],
    made: Int32[Array, " B"],
    *,
    extent: Extent = Extent.ALL,
) -> Sampled:
    """Choose the next token of each row.

    Args:
        logits: the model's scores, float32.
        state: of all slots; tokens so far are counted in those that have penalties.
        slots: each row's slot.
        made: tokens that each row's answer has so far.
        extent: all that any of the rows asks for. Where that is the likeliest token alone, ``likeliest`` does.
    """
    options = jax.tree.map(lambda leaf: leaf[slots], state.options)
    if extent < Extent.ALL:
        keep = _kept if extent is Extent.FILTER else _all_kept
        return Sampled(_draw(logits, options, made, keep), *_no_report(logits))
    edited = _penalize(logits, options, state, slots)
    edited = _add_bias(edited, options)
    edited = _hold_back_ends(edited, options, made)
    edited = _apply_grammar(edited, state, slots)
    tokens = lax.cond(
        jnp.any(options.temperature > 0),
        partial(_draw, kept=_kept_if_asked),
        lambda x, *_: likeliest(x),
        edited,
        options,
        made,
    )
    return Sampled(tokens, *lax.cond(jnp.any(options.logprobs), _report, _no_report, logits, tokens))


def likeliest(logits: Float[Array, "*B V"]) -> Int32[Array, "*B"]:
    """The token of the highest score, the first of several."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


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


def _draw(logits, options: SlotOptions, made, kept: Callable[..., Bool[Array, "B V"]]) -> Int32[Array, " B"]:
    """Gumbel-max sampling; rows of temperature 0 take the most likely token."""
    greedy = options.temperature == 0
    # Only differences count: taken from the highest down, they do not overflow however low the temperature is.
    highest = jnp.max(logits, axis=-1, keepdims=True)
    below = logits - jnp.where(jnp.isfinite(highest), highest, 0.0)
    scaled = below / jnp.maximum(jnp.where(greedy, 1.0, options.temperature), jnp.finfo(jnp.float32).tiny)[:, None]
    keep = kept(scaled, options)

    def noise(seed, step):
        return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), step), (logits.shape[1],))

    noisy = jnp.where(keep, scaled + jax.vmap(noise)(options.seed, made), -jnp.inf)
    return likeliest(jnp.where(greedy[:, None], logits, noisy))


def _all_kept(scaled, options: SlotOptions) -> Bool[Array, "B V"]:
    return jnp.ones(scaled.shape, bool)


def _kept_if_asked(scaled, options: SlotOptions) -> Bool[Array, "B V"]:
    asked = ((options.top_k > 0) | (options.top_p < 1) | (options.min_p > 0)) & (options.temperature > 0)
    return lax.cond(jnp.any(asked), _kept, _all_kept, scaled, options)


def _kept(scaled: Float[Array, "B V"], options: SlotOptions) -> Bool[Array, "B V"]:
    """Which tokens top-k, then top-p among those, then min-p leave; the most likely always stays."""
    # The likeliest token is at 0, so e^x is a probability but for a factor; what underflows is beyond every cut.
    keys, weights = descending_keys(scaled), jnp.exp(scaled)
    top_k = options.top_k[:, None]
    keep = (top_k == 0) | keep_until(keys, jnp.ones_like(weights), jnp.maximum(options.top_k, 1).astype(jnp.float32))
    left = jnp.where(keep, weights, 0)
    # What top-k dropped ranks behind everything else, with a weight that is the same for all of it.
    ranked = jnp.where(keep, keys, jnp.uint32(2**32 - 2))
    keep &= (options.top_p[:, None] >= 1) | keep_until(ranked, left, options.top_p * jnp.sum(left, axis=-1))
    keep &= weights >= options.min_p[:, None]
    return keep | (jnp.arange(scaled.shape[1], dtype=jnp.int32) == likeliest(scaled)[:, None])


def _report(logits, tokens):
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
    values, ids = lax.top_k(logprobs, min(MAX_LOGPROBS, logits.shape[1]))
    return chosen, ids.astype(jnp.int32), values


def _no_report(logits, _=None):
    b, top = logits.shape[0], min(MAX_LOGPROBS, logits.shape[1])
    return jnp.zeros(b, logits.dtype), jnp.zeros((b, top), jnp.int32), jnp.zeros((b, top), logits.dtype)
