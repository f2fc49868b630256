"""The paged KV cache: one pool of pages for all layers and sequences."""

from dataclasses import replace

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from jaxdeploy.config.engine import QUANT_POLICIES
from jaxdeploy.config.model import ModelConfig
from jaxdeploy.errors import ConfigError
from jaxdeploy.pytree import Leaf
from pallas_kernels.kv_write.api import kv_write, rope_kv_write
from pallas_kernels.kv_write.reference import Pools
from pallas_kernels.paged_attention.reference import Pages

PAIR_BYTES = 4
"""A (scale, offset) pair: two float16."""


def page_bytes(config: ModelConfig, *, quant_policy: int, page_size: int, dtype_bytes: int) -> int:
    """Bytes of one page over all layers, K and V together, pairs included.

    ``layers * kv_heads * head_dim * 2 * bits / 8 * page_size``, plus one pair per token, head and of K and V where quantized.
    """
    heads = 2 * config.num_layers * config.num_kv_heads * page_size
    if quant_policy == 0:
        return heads * config.head_dim * dtype_bytes
    return heads * (config.head_dim * quant_policy // 8 + PAIR_BYTES)


@flax.struct.dataclass
class KVPages:
    """Keys and values of every cached token, and how they are stored.

    Attributes:
        k, v: the pools; Hs is H, or H/2 bytes for int4.
        k_pairs, v_pairs: (scale, offset) of each token and head; None where K and V are not quantized.
        quant_policy: 0 keeps the model's dtype, 8 and 4 are asymmetric integers per token and head.
    """

    k: Leaf  # [L, P, K, page, Hs]
    v: Leaf  # [L, P, K, page, Hs]
    k_pairs: Leaf | None  # float16 [L, P, K, page, 2]
    v_pairs: Leaf | None
    quant_policy: int = flax.struct.field(pytree_node=False, default=0)

    @classmethod
    def create(
        cls, config: ModelConfig, num_pages: int, *, page_size: int = 64, quant_policy: int = 0, dtype: str = "float32"
    ) -> "KVPages":
        """An empty pool on the default device.

        Raises:
            ConfigError: an unknown quant_policy, or an odd head_dim with int4.
        """
        if quant_policy not in QUANT_POLICIES:
            raise ConfigError(f"{quant_policy=} must be one of {QUANT_POLICIES}")
        if quant_policy == 4 and config.head_dim % 2:
            raise ConfigError(
                f"quant_policy=4 packs two values to a byte and needs an even head_dim, not {config.head_dim}"
            )
        lead = (config.num_layers, num_pages, config.num_kv_heads, page_size)
        if quant_policy == 0:
            return cls(
                jnp.zeros((*lead, config.head_dim), dtype), jnp.zeros((*lead, config.head_dim), dtype), None, None, 0
            )
        stored = (*lead, config.head_dim * quant_policy // 8)
        pair = (*lead, 2)
        return cls(
            jnp.zeros(stored, jnp.uint8), jnp.zeros(stored, jnp.uint8),
            jnp.zeros(pair, jnp.float16), jnp.zeros(pair, jnp.float16), quant_policy,
        )  # fmt: skip

    @property
    def bits(self) -> int:
        """Width of a stored value as the kernels name it: 16 for the model's own dtype, else 8 or 4."""
        return self.quant_policy or 16

    @property
    def num_pages(self) -> int:
        """P, pages in the pool."""
        return self.k.shape[1]

    @property
    def page_size(self) -> int:
        """Tokens a page holds."""
        return self.k.shape[3]

    @property
    def k_pages(self) -> Pages:
        """The keys, as the attention kernels take them."""
        return Pages(self.k, self.k_pairs, self.bits)

    @property
    def v_pages(self) -> Pages:
        """The values, as the attention kernels take them."""
        return Pages(self.v, self.v_pairs, self.bits)

    def write(
        self,
        layer: Int32[Array, ""],
        k: Float[Array, "T K H"],
        v: Float[Array, "T K H"],
        page_ids: Int32[Array, " T"],
        offsets: Int32[Array, " T"],
    ) -> "KVPages":
        """Put the keys (after RoPE) and values of T tokens into their places; page id P drops a row."""
        return self._holding(kv_write(self._pools, k, v, layer, page_ids, offsets, bits=self.bits))

    def rope_write(
        self,
        layer: Int32[Array, ""],
        qkv: Float[Array, "T M H"],
        cos: Float[Array, "T F"],
        sin: Float[Array, "T F"],
        page_ids: Int32[Array, " T"],
        offsets: Int32[Array, " T"],
    ) -> tuple[Float[Array, "T N H"], "KVPages"]:
        """RoPE on queries and keys, then ``write``; returns the queries too. F is H/2, M is N + 2K."""
        q, pools = rope_kv_write(self._pools, qkv, cos, sin, layer, page_ids, offsets, bits=self.bits)
        return q, self._holding(pools)

    @property
    def _pools(self) -> Pools:
        return Pools(self.k, self.v, self.k_pairs, self.v_pairs)

    def _holding(self, pools: Pools) -> "KVPages":
        return replace(self, k=pools.k, v=pools.v, k_pairs=pools.k_pairs, v_pairs=pools.v_pairs)
