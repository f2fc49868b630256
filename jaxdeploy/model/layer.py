"""One decoder layer: attention over the paged cache, then the gated MLP. Weights are stacks, the layer is an index."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from jaxdeploy.cache.kv_pages import KVPages
from jaxdeploy.config.model import ModelConfig
from jaxdeploy.model.inputs import ModelInputs
from jaxdeploy.model.linear import StackedLinear
from jaxdeploy.model.norm import RMSNorm, Unnormed
from jaxdeploy.model.parameter import Source, described
from jaxdeploy.model.rope import apply_rotation
from jaxdeploy.model.rotation import change_basis, plain_bases, rotate_heads, second_moments, whole_rotation
from jaxdeploy.pytree import Leaf
from pallas_kernels.head_basis.api import rope_change_basis, turn_heads
from pallas_kernels.paged_attention.api import paged_decode, paged_prefill

PREFIX = "model.layers.{layer}."
MOMENTS = "moments"
"""Collection of the second moments of keys and queries, for whoever asks for it when applying the model."""


@flax.struct.dataclass
class StepContext:
    """What every layer of a pass shares: the inputs, RoPE's tables and the places of the new tokens in the cache."""

    inputs: ModelInputs
    cos: Leaf  # float32 [T, H/2]
    sin: Leaf  # float32 [T, H/2]
    page_ids: Leaf  # int32 [T]
    offsets: Leaf  # int32 [T]


class Attention(nn.Module):
    """Grouped-query attention; writes the new keys and values to their pages, then attends to the pages alone."""

    config: ModelConfig
    dtype: str

    @nn.compact
    def __call__(
        self,
        unnormed: Unnormed,
        pages: KVPages,
        layer: Int32[Array, ""],
        window: Int32[Array, ""],
        step: StepContext,
    ) -> tuple[Float[Array, "T D"], Float[Array, "T D"], KVPages]:
        """The residual stream, attention's output (not yet added to it), and the pool with the new tokens in it."""
        c, prefix = self.config, PREFIX + "self_attn."
        heads, kv_heads, head_dim = c.num_heads, c.num_kv_heads, c.head_dim
        x, qkv = StackedLinear(
            c, (prefix + "q_proj", prefix + "k_proj", prefix + "v_proj"), c.hidden_size,
            (heads + 2 * kv_heads) * head_dim, ("heads", "embed"), c.qkv_bias, self.dtype, name="qkv",
        ).after_norm(unnormed, layer)  # fmt: skip
        qkv = qkv.reshape(-1, heads + 2 * kv_heads, head_dim)
        rotates_values = c.value_rotation == "online"
        matrix, root = whole_rotation(head_dim, qkv.dtype.name) if rotates_values else (None, 1.0)
        if c.qk_norm or c.rotates_keys or rotates_values:
            if c.qk_norm or not c.rotates_keys or self.is_mutable_collection(MOMENTS):
                q, k, v = self._split(qkv, step, layer)
                q, k, v = self._turned(q, k, v, layer)
            else:
                for_keys, for_queries = self._bases()
                q, k, v = rope_change_basis(qkv, step.cos, step.sin, for_queries, for_keys, layer, matrix, divisor=root)
            pages = pages.write(layer, k, v, step.page_ids, step.offsets)
        else:
            q, pages = pages.rope_write(layer, qkv, step.cos, step.sin, step.page_ids, step.offsets)
        inputs, scale = step.inputs, head_dim**-0.5
        if inputs.decode:
            out = paged_decode(
                q, pages.k_pages, pages.v_pages, layer, inputs.block_table, inputs.context_lens, window, scale=scale
            )
        else:
            out = paged_prefill(
                q, pages.k_pages, pages.v_pages, layer, inputs.block_table, inputs.query_start, inputs.context_lens,
                window, scale=scale, max_queries=inputs.max_queries, mixed=inputs.mixed,
            )  # fmt: skip
        if matrix is not None:
            out = turn_heads(out, matrix, divisor=root)
        out = StackedLinear(
            c,
            (prefix + "o_proj",),
            heads * head_dim,
            c.hidden_size,
            ("embed", "heads"),
            c.o_bias,
            self.dtype,
            name="out",
        )(out.reshape(-1, heads * head_dim), layer)
        return x, out, pages

    def _split(self, qkv: jax.Array, step: StepContext, layer: jax.Array) -> tuple[jax.Array, ...]:
        """q, k and v, the first two normalized where the model does that and after RoPE."""
        c, prefix = self.config, PREFIX + "self_attn."
        heads, kv_heads, head_dim = c.num_heads, c.num_kv_heads, c.head_dim
        q, k, v = jnp.split(qkv, (heads, heads + kv_heads), axis=1)
        if c.qk_norm:
            q = RMSNorm(prefix + "q_norm", head_dim, c.rms_norm_eps, self.dtype, c.num_layers, name="q_norm")(q, layer)
            k = RMSNorm(prefix + "k_norm", head_dim, c.rms_norm_eps, self.dtype, c.num_layers, name="k_norm")(k, layer)
        return apply_rotation(q, step.cos, step.sin), apply_rotation(k, step.cos, step.sin), v

    def _turned(self, q: jax.Array, k: jax.Array, v: jax.Array, layer: jax.Array) -> tuple[jax.Array, ...]:
        """q, k and v as the cache stores them; the products of q and k stay what they are."""
        c = self.config
        if c.rotates_keys:
            if self.is_mutable_collection(MOMENTS):
                self.sow(MOMENTS, "keys", second_moments(k, c.num_kv_heads))
                self.sow(MOMENTS, "queries", second_moments(q, c.num_kv_heads))
            for_keys, for_queries = self._bases()
            k, q = change_basis(k, for_keys, layer), change_basis(q, for_queries, layer)
        return q, k, rotate_heads(v) if c.value_rotation == "online" else v

    def _bases(self) -> tuple[jax.Array, jax.Array]:
        """Of keys and of queries, [L, K, H, H] each."""
        c = self.config
        init = described(
            lambda _: plain_bases(c.num_layers, c.num_kv_heads, c.head_dim, self.dtype),
            Source((), "", ("layer", "kv_heads", "head", "head"), stacked=True),
        )
        for_keys: Any = self.param("key_basis", init)
        for_queries: Any = self.param("query_basis", init)
        return for_keys, for_queries


class MLP(nn.Module):
    """``down(silu(gate(x)) * up(x))``, gate and up joined into one matrix."""

    config: ModelConfig
    dtype: str

    @nn.compact
    def __call__(self, unnormed: Unnormed, layer: Int32[Array, ""]) -> tuple[Float[Array, "T D"], Float[Array, "T D"]]:
        """The residual stream, and the MLP's output, not yet added to it."""
        c, prefix = self.config, PREFIX + "mlp."
        x, gated = StackedLinear(
            c, (prefix + "gate_proj", prefix + "up_proj"), c.hidden_size, 2 * c.intermediate_size, ("ffn", "embed"),
            c.mlp_bias, self.dtype, gated=True, name="gate_up",
        ).after_norm(unnormed, layer)  # fmt: skip
        out = StackedLinear(
            c,
            (prefix + "down_proj",),
            c.intermediate_size,
            c.hidden_size,
            ("embed", "ffn"),
            c.mlp_bias,
            self.dtype,
            name="down",
        )(gated, layer)
        return x, out


class DecoderLayer(nn.Module):
    """Body of the scan over layers: carries its number, activations and the page pool, reads its weights by that number.

    The number is counted: scanned, it would be sliced from an array, by a kernel that all others of the layer wait for.
    Activations are (x, delta): what this layer's MLP made is left for the next norm to add, and both for the matmul they are for.
    """

    config: ModelConfig
    dtype: str

    @nn.compact
    def __call__(
        self,
        carry: tuple[Int32[Array, ""], Float[Array, "T D"], Float[Array, "T D"], KVPages],
        window: Int32[Array, ""],
        step: StepContext,
    ) -> tuple[tuple[Int32[Array, ""], Float[Array, "T D"], Float[Array, "T D"], KVPages], None]:
        """One layer; ``window`` is 0 for full attention."""
        layer, x, delta, pages = carry
        c = self.config

        def norm(module: str, name: str) -> RMSNorm:
            return RMSNorm(PREFIX + module, c.hidden_size, c.rms_norm_eps, self.dtype, c.num_layers, name=name)

        unnormed = norm("input_layernorm", "attention_norm").put_off(x, delta)
        x, attended, pages = Attention(c, self.dtype, name="attention")(unnormed, pages, layer, window, step)
        unnormed = norm("post_attention_layernorm", "mlp_norm").put_off(x, attended)
        x, delta = MLP(c, self.dtype, name="mlp")(unnormed, layer)
        return (layer + 1, x, delta, pages), None
