"""One decoder layer over whole sequences, without a cache: the calibration's forward pass.

Weights are a flat dict by the parameter tree's own names ("attention.qkv.weight"), one layer's worth, so that a search can put
a rounded matrix in the place of any of them. Shapes: x [B, T, D].
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdeploy.config.model import ModelConfig
from jaxdeploy.lite.program import programs
from jaxdeploy.model.norm import rms_norm
from jaxdeploy.model.rope import apply_rotation, inverse_frequencies, rotation_tables

QKV, OUT, GATE_UP, DOWN = "attention.qkv", "attention.out", "mlp.gate_up", "mlp.down"
LINEARS = (QKV, OUT, GATE_UP, DOWN)

_SCORES = 1 << 26
"""Most attention scores at once: 256 MiB of float32."""

Weights = dict[str, Any]
"""A layer's arrays by name; ``<linear>.weight`` is [N, K], ``<linear>.bias`` [N]."""


class Positions(NamedTuple):
    """What a layer needs to know about its tokens besides their activations."""

    cos: Any  # float32 [T, H/2]
    sin: Any  # float32 [T, H/2]
    window: Any  # int32 [], 0 for full attention


def positions(config: ModelConfig, length: int, layer: int) -> Positions:
    """Of sequences of ``length`` tokens that go no further (dynamic RoPE looks at the length)."""
    cos, sin = _rotation(config, length)
    return Positions(cos, sin, np.int32(config.sliding_windows[layer]))


@programs(static_argnums=(0, 1))
def _rotation(config: ModelConfig, length: int) -> tuple[jax.Array, jax.Array]:
    places = jnp.arange(length, dtype=jnp.int32)
    frequencies = inverse_frequencies(config.rope, config.head_dim, jnp.full(1, length, jnp.int32))
    return rotation_tables(places, jnp.repeat(frequencies, length, axis=0), config.rope.attention_factor)


def project(weights: Weights, linear: str, x: jax.Array) -> jax.Array:
    """``x @ w.T + bias`` of one linear module, accumulated in float32, in the dtype of x."""
    w = weights[f"{linear}.weight"]
    out = lax.dot_general(x, w.astype(x.dtype), (((x.ndim - 1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    bias = weights.get(f"{linear}.bias")
    return (out if bias is None else out + bias).astype(x.dtype)


def attention_input(config: ModelConfig, weights: Weights, x: jax.Array) -> jax.Array:
    """What q, k and v read: x, normalized."""
    return rms_norm(x, weights["attention_norm.weight"].astype(x.dtype), config.rms_norm_eps)


def mlp_input(config: ModelConfig, weights: Weights, x: jax.Array) -> jax.Array:
    """What gate and up read: x, normalized."""
    return rms_norm(x, weights["mlp_norm.weight"].astype(x.dtype), config.rms_norm_eps)


def mixed_values(config: ModelConfig, weights: Weights, normed: jax.Array, places: Positions) -> jax.Array:
    """The heads' outputs side by side, which the output projection reads: [B, T, N * H]."""
    batch, length = normed.shape[:2]
    heads, kv_heads, size = config.num_heads, config.num_kv_heads, config.head_dim
    qkv = project(weights, QKV, normed).reshape(batch * length, heads + 2 * kv_heads, size)
    q, k, v = jnp.split(qkv, (heads, heads + kv_heads), axis=1)
    if config.qk_norm:
        q = rms_norm(q, weights["attention.q_norm.weight"].astype(q.dtype), config.rms_norm_eps)
        k = rms_norm(k, weights["attention.k_norm.weight"].astype(k.dtype), config.rms_norm_eps)
    cos, sin = jnp.tile(places.cos, (batch, 1)), jnp.tile(places.sin, (batch, 1))
    q, k = apply_rotation(q, cos, sin), apply_rotation(k, cos, sin)
    q, k, v = (part.reshape(batch, length, -1, size) for part in (q, k, v))
    return causal_attention(q, k, v, places.window).reshape(batch, length, heads * size)


def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array, window: jax.Array) -> jax.Array:
    """Attention of every token to itself and those before it, so many queries at a time that scores stay small.

    Args:
        q: [B, T, N, H]; k and v: [B, T, K, H].
        window: how many positions a query sees; 0 for all.

    Returns:
        [B, T, N, H] in the dtype of q; the softmax is float32.
    """
    batch, length, heads, size = q.shape
    kv_heads = k.shape[2]
    count = -(-batch * heads * length * length // _SCORES)
    rows = -(-length // count)
    padded = jnp.pad(q, ((0, 0), (0, rows * count - length), (0, 0), (0, 0)))
    parts = padded.reshape(batch, count, rows, kv_heads, heads // kv_heads, size).swapaxes(0, 1)

    def attend(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        first, queries = part
        scores = jnp.einsum("btkgh,bskh->bkgts", queries, k, preferred_element_type=jnp.float32) * size**-0.5
        distance = first + jnp.arange(rows)[:, None] - jnp.arange(length)[None]
        visible = (distance >= 0) & ((window == 0) | (distance < window))
        weights = jax.nn.softmax(jnp.where(visible, scores, -1e30), axis=-1)
        return jnp.einsum("bkgts,bskh->btkgh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)

    # Learned rounding differentiates through this; what is kept for it would be all the scores.
    out = lax.map(jax.checkpoint(attend), (jnp.arange(count) * rows, parts)).astype(q.dtype)
    return out.swapaxes(0, 1).reshape(batch, rows * count, heads, size)[:, :length]


def gated(weights: Weights, normed: jax.Array) -> jax.Array:
    """``silu(gate) * up``, which the down projection reads."""
    gate, up = jnp.split(project(weights, GATE_UP, normed), 2, axis=-1)
    return jax.nn.silu(gate) * up


def block(
    config: ModelConfig, weights: Weights, x: jax.Array, places: Positions
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The layer's output, and what each of its linear modules read."""
    inputs = {QKV: attention_input(config, weights, x)}
    inputs[OUT] = mixed_values(config, weights, inputs[QKV], places)
    x = x + project(weights, OUT, inputs[OUT])
    inputs[GATE_UP] = mlp_input(config, weights, x)
    inputs[DOWN] = gated(weights, inputs[GATE_UP])
    return x + project(weights, DOWN, inputs[DOWN]), inputs
