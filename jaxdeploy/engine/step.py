"""The compiled step: model, then sampler, on state that never leaves the device."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from jaxdeploy.cache.kv_pages import KVPages
from jaxdeploy.engine.batch import StepLayout
from jaxdeploy.model.decoder import Decoder, next_logits, run_layers
from jaxdeploy.sampling.sampler import Sampled, sample
from jaxdeploy.sampling.slots import SlotState

Step = Callable[[dict, KVPages, SlotState, Array], tuple[KVPages, SlotState, Sampled]]


def run_step(
    model: Decoder, layout: StepLayout, params: dict, pages: KVPages, state: SlotState, packed: Int32[Array, " size"]
) -> tuple[KVPages, SlotState, Sampled]:
    """Feed the tokens of a packed plan and sample the next token of each row (of interest only where the row samples)."""
    inputs = layout.unpack(packed)
    token_slots = jnp.take(inputs.slots, inputs.model.rows)
    tokens = jnp.where(inputs.from_device, state.last_token[token_slots], inputs.model.tokens)
    fed = replace(inputs.model, tokens=tokens)
    state = state.count(token_slots, tokens, inputs.prompt, fed.valid)
    hidden, pages = run_layers(model, params, fed, pages)
    logits = next_logits(model, params, hidden[fed.last_tokens])
    sampled = sample(logits, state, inputs.slots, inputs.made)
    kept = jnp.where(inputs.samples, sampled.tokens, state.last_token[inputs.slots])
    return pages, replace(state, last_token=state.last_token.at[inputs.slots].set(kept)), sampled


def lower_step(
    model: Decoder, layout: StepLayout, params: dict, pages: KVPages, state: SlotState
) -> jax.stages.Lowered:
    """Lower the step of one bucket. Arguments may be arrays or ShapeDtypeStructs; pages and state are donated.

    The compiled result can be called, can't be re-compiled, and tells what memory it needs (``memory_analysis``).
    """

    def step(params, pages, state, packed):
        return run_step(model, layout, params, pages, state, packed)

    packed = jax.ShapeDtypeStruct((layout.size,), jnp.int32)
    return jax.jit(step, donate_argnums=(1, 2)).lower(params, pages, state, packed)
