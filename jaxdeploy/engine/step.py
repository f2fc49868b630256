"""The two compiled programs of a step, on state that never leaves the device: the model, then the sampler.

They are apart because they vary apart: the model by bucket, the sampler by number of rows and by what the rows ask for.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from jaxdeploy.cache.kv_pages import KVPages
from jaxdeploy.engine.batch import StepLayout
from jaxdeploy.model.decoder import Decoder, next_logits, run_layers
from jaxdeploy.sampling.extent import Extent
from jaxdeploy.sampling.sampler import Sampled, sample
from jaxdeploy.sampling.slots import SlotState


def run_model(
    model: Decoder,
    layout: StepLayout,
    params: dict,
    pages: KVPages,
    last_token: Int32[Array, " S"],
    packed: Int32[Array, " size"],
) -> tuple[KVPages, Float[Array, "R V"], Int32[Array, "3 R"]]:
    """Feed the tokens of a packed plan.

    Returns:
        The pages, the scores of the next token at each place that samples, and what the sampler needs to know of these places.
    """
    inputs = layout.unpack(packed)
    token_slots = jnp.take(inputs.slots, inputs.model.rows)
    fed = replace(inputs.model, tokens=jnp.where(inputs.from_device, last_token[token_slots], inputs.model.tokens))
    hidden, pages = run_layers(model, params, fed, pages)
    # A decode step samples at one place a row; the sampler may have room for more.
    bucket = layout.bucket
    places = bucket.rows if bucket.decode else bucket.sampler_rows
    logits = next_logits(model, params, hidden[inputs.picks[:places]])
    return pages, jnp.pad(logits, ((0, bucket.sampler_rows - places), (0, 0))), inputs.sampler_rows


def run_sampler(
    extent: Extent, state: SlotState, logits: Float[Array, "B V"], rows: Int32[Array, "3 B"]
) -> tuple[SlotState, Sampled]:
    """Sample at each place and keep the token for the next step where that is wanted; see ``StepInputs.sampler_rows``."""
    slots, keeps, made = rows[0], rows[1] == 1, rows[2]
    sampled = sample(logits, state, slots, made, extent=extent)
    kept = jnp.where(keeps, sampled.tokens, state.last_token[slots])
    state = replace(state, last_token=state.last_token.at[slots].set(kept))
    if extent is Extent.ALL:
        state = state.count(slots, kept, jnp.zeros_like(keeps), keeps)
    return state, sampled


def lower_model(
    model: Decoder,
    layout: StepLayout,
    params: dict,
    pages: KVPages,
    last_token: Array | jax.ShapeDtypeStruct,
    *,
    unroll: bool = True,
) -> jax.stages.Lowered:
    """Lower the model of one bucket. Arguments may be arrays or ShapeDtypeStructs; pages are donated.

    The compiled result can be called, can't be re-compiled, and tells what memory it needs (``memory_analysis``).

    Args:
        unroll: write the layers out where that is faster to run; it takes longer to compile.
    """

    if unroll and layout.bucket.decode and jax.default_backend() == "gpu":
        # In a loop the host is slower than a layer of few tokens. Measured on an H100, jax 0.11.2, one int4 matmul of 5 us for each
        # layer: 15 us of host time an iteration of fori_loop, 1.6 us a layer written out.
        model = model.clone(unroll=model.config.num_layers)

    def step(params, pages, last_token, packed):
        return run_model(model, layout, params, pages, last_token, packed)

    packed = jax.ShapeDtypeStruct((layout.size,), jnp.int32)
    return jax.jit(step, donate_argnums=1).lower(params, pages, last_token, packed)


def lower_sampler(extent: Extent, batch: int, vocabulary: int, state: SlotState) -> jax.stages.Lowered:
    """Lower the sampler for ``batch`` rows.

    The program of the last extent takes (state, donated; logits; rows) and returns state and ``Sampled``. Those of the others
    change nothing of the state but its tokens and report nothing: they return ``last_token`` and the tokens alone.
    """

    def whole(state, logits, rows):
        return run_sampler(extent, state, logits, rows)

    def tokens_alone(state, logits, rows):
        state, sampled = run_sampler(extent, state, logits, rows)
        return state.last_token, sampled.tokens

    logits = jax.ShapeDtypeStruct((batch, vocabulary), jnp.float32)
    rows = jax.ShapeDtypeStruct((3, batch), jnp.int32)
    if extent is Extent.ALL:
        return jax.jit(whole, donate_argnums=0).lower(state, logits, rows)
    return jax.jit(tokens_alone).lower(state, logits, rows)
