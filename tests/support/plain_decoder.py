"""The decoder as a textbook would write it: no cache, no pages, no kernels. Full recompute is the engine's yardstick."""

import jax
import jax.numpy as jnp

from jaxdeploy.config.model import ModelConfig
from jaxdeploy.model.rope import inverse_frequencies, rotate


def plain_logits(config: ModelConfig, params: dict, tokens: jax.Array, rope_length: int) -> jax.Array:
    """Logits [T, V] after each of T tokens of one sequence, float32; padding behind the text changes nothing before it."""
    length, heads, kv_heads, size = tokens.shape[0], config.num_heads, config.num_kv_heads, config.head_dim
    positions = jnp.arange(length, dtype=jnp.int32)
    frequencies = inverse_frequencies(config.rope, size, jnp.full(length, rope_length, jnp.int32))
    causal = positions[:, None] >= positions[None]

    def norm(x, weight):
        return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + config.rms_norm_eps) * weight

    def project(x, part, layer):
        out = x @ part["weight"][layer].T
        return out + part["bias"][layer] if "bias" in part else out

    x = params["embedding"][tokens]
    layers = params["layers"]
    for layer in range(config.num_layers):
        attention, mlp = layers["attention"], layers["mlp"]
        qkv = project(norm(x, layers["attention_norm"]["weight"][layer]), attention["qkv"], layer)
        q, k, v = jnp.split(qkv.reshape(length, -1, size), [heads, heads + kv_heads], axis=1)
        q = rotate(q, positions, frequencies, config.rope.attention_factor)
        k = rotate(k, positions, frequencies, config.rope.attention_factor)
        k, v = jnp.repeat(k, heads // kv_heads, axis=1), jnp.repeat(v, heads // kv_heads, axis=1)
        scores = jnp.einsum("tnh,snh->nts", q, k) * size**-0.5
        weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1)
        x = x + project(jnp.einsum("nts,snh->tnh", weights, v).reshape(length, -1), attention["out"], layer)
        gate, up = jnp.split(project(norm(x, layers["mlp_norm"]["weight"][layer]), mlp["gate_up"], layer), 2, axis=-1)
        x = x + project(jax.nn.silu(gate) * up, mlp["down"], layer)
    head = params["embedding"] if config.tie_word_embeddings else params["lm_head"]
    return norm(x, params["norm"]["weight"]) @ head.T
