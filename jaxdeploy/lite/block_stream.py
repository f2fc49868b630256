"""Activations of all calibration tokens, carried from layer to layer in chunks that stay on the device."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int32

from jaxdeploy.config.model import ModelConfig
from jaxdeploy.lite.block import LINEARS, Positions, Weights, block
from jaxdeploy.lite.program import programs
from jaxdeploy.lite.statistics import LayerStatistics, count_chunk, no_statistics
from jaxdeploy.model.norm import rms_norm

CHUNK_TOKENS = 8192


class BlockStream:
    """x [B, T, D] of every sample before the next layer, in chunks of B samples.

    Args:
        config: of the model.
        embedding: [V, D] float32.
        tokens: [S, T].
        batch: B of a chunk; on a GPU at least as many as have CHUNK_TOKENS together, to keep it busy.
        dtype: of activations.
    """

    def __init__(
        self,
        config: ModelConfig,
        embedding: Float[np.ndarray, "V D"],
        tokens: Int32[np.ndarray, "S T"],
        *,
        batch: int,
        dtype: str,
    ):
        self._config = config
        if jax.default_backend() != "cpu":
            batch = max(batch, CHUNK_TOKENS // tokens.shape[1])
        parts = [tokens[start : start + batch] for start in range(0, len(tokens), batch)]
        table = jnp.asarray(embedding)
        self.chunks = [_embed(table, part, dtype) for part in parts]

    def statistics(self, weights: Weights, places: Positions) -> LayerStatistics:
        """Of all linear modules' inputs in the coming layer."""
        counted = no_statistics(tuple((linear, weights[f"{linear}.weight"].shape[1]) for linear in LINEARS))
        for x in self.chunks:
            counted = count_chunk(self._config, weights, x, places, counted)
        return counted

    def next_chunks(self, weights: Weights, places: Positions) -> list[jax.Array]:
        """The layer's outputs."""
        return [run_chunk(self._config, weights, x, places) for x in self.chunks]

    def advance(self, weights: Weights, places: Positions) -> None:
        """Run the layer: its outputs take the place of its inputs, chunk by chunk."""
        for index, x in enumerate(self.chunks):
            self.chunks[index] = run_chunk(self._config, weights, x, places)

    def first_tokens(self, count: int) -> list[jax.Array]:
        """Chunks from the start until they have ``count`` tokens, at least one."""
        taken, tokens = [], 0
        for x in self.chunks:
            if taken and tokens + x.shape[0] * x.shape[1] > count:
                break
            taken.append(x)
            tokens += x.shape[0] * x.shape[1]
        return taken


@programs(static_argnums=(2,))
def _embed(table: jax.Array, tokens: jax.Array, dtype: str) -> jax.Array:
    return jnp.take(table, tokens, axis=0).astype(dtype)


@programs(static_argnums=(0,))
def run_chunk(config: ModelConfig, weights: Weights, x: jax.Array, places: Positions) -> jax.Array:
    """The layer's output."""
    return block(config, weights, x, places)[0]


@programs(static_argnums=(0,))
def linear_inputs(config: ModelConfig, weights: Weights, x: jax.Array, places: Positions) -> dict[str, jax.Array]:
    """What each linear module of the layer reads."""
    return block(config, weights, x, places)[1]


@programs(static_argnums=(0,))
def relative_error(
    config: ModelConfig, exact: Weights, changed: Weights, x: jax.Array, places: Positions
) -> tuple[jax.Array, jax.Array]:
    """(squared error of the changed layer's output, squared size of what the exact layer adds to x)."""
    right = block(config, exact, x, places)[0].astype(jnp.float32)
    found = block(config, changed, x, places)[0].astype(jnp.float32)
    return jnp.sum(jnp.square(found - right)), jnp.sum(jnp.square(right - x.astype(jnp.float32)))


@programs(static_argnums=(0,))
def token_losses(
    config: ModelConfig,
    norm: Float[jax.Array, " D"],
    head: Float[jax.Array, "V D"],
    hidden: Float[jax.Array, "T D"],
    tokens: Int32[jax.Array, " T"],
) -> Float[jax.Array, " T-1"]:
    """Negative log-likelihood of each token but the first of one sequence, from the last layer's output."""
    normed = rms_norm(hidden[:-1], norm.astype(hidden.dtype), config.rms_norm_eps)
    logits = jax.lax.dot_general(
        normed, head.astype(hidden.dtype), (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    return -jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), tokens[1:, None], axis=1)[:, 0]


def mean_loss(
    config: ModelConfig, stream: BlockStream, norm: np.ndarray, head: np.ndarray, tokens: Int32[np.ndarray, "S T"]
) -> float:
    """Mean negative log-likelihood of the stream's tokens after the last layer."""
    device_head, device_norm = jnp.asarray(head), jnp.asarray(norm)
    losses, row = [], 0
    for chunk in stream.chunks:
        for hidden in chunk:
            losses.append(np.asarray(token_losses(config, device_norm, device_head, hidden, jnp.asarray(tokens[row]))))
            row += 1
    return float(np.mean(np.concatenate(losses), dtype=np.float64))
