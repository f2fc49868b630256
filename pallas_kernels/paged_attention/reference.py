"""The contract of paged attention: softmax over the pages of a sequence, a chunk of pages at a time.

Both functions walk the context in chunks with a running maximum and sum (Milakov & Gimelshein, "Online normalizer calculation for
softmax"), so memory doesn't grow with the context and only the pages that a sequence fills are read. Arithmetic is float32.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, Num

from pallas_kernels.kv_write.reference import dequantize_heads

CHUNK_TOKENS = 256
"""Context tokens of one step of the walk: enough to keep a matmul busy, little enough to keep scores small."""
QUERY_TILE = 64
"""Query tokens of one step of prefill."""
MASKED = -1e30


class Pages(NamedTuple):
    """One of K and V: the pool, its (scale, offset) pairs (None for bits 16), and the width of a value."""

    values: Num[Array, "L P K page Hs"]
    pairs: Float[Array, "L P K page 2"] | None
    bits: int

    @property
    def page_size(self) -> int:
        """Tokens a page holds."""
        return self.values.shape[3]

    def gather(self, layer: Int32[Array, ""], page_ids: Int32[Array, "B C"]) -> Float[Array, "B K S H"]:
        """The de-quantized tokens of C pages each, S = C * page, float32."""
        values = self.values[layer, page_ids]
        if self.pairs is None:
            tokens = values.astype(jnp.float32)
        else:
            tokens = dequantize_heads(values, self.pairs[layer, page_ids], bits=self.bits)
        b, c, k, page, h = tokens.shape
        return tokens.transpose(0, 2, 1, 3, 4).reshape(b, k, c * page, h)


class Context(NamedTuple):
    """What queries look at: tokens in pages of a layer.

    Attributes:
        k_pages, v_pages: pools.
        layer: whose pages.
        block_table: pages of each sequence in order.
        lens: tokens of each sequence in its pages; 0 for a padding row.
        window: a key is seen if fewer than ``window`` positions back; 0 sees all.
    """

    k_pages: Pages
    v_pages: Pages
    layer: Int32[Array, ""]
    block_table: Int32[Array, "B W"]
    lens: Int32[Array, " B"]
    window: Int32[Array, ""]


class Running(NamedTuple):
    """State of the online softmax for queries [B, K, G, T]: maximum, sum of exponentials, weighted values."""

    maximum: Float[Array, "B K G T"]
    total: Float[Array, "B K G T"]
    values: Float[Array, "B K G T H"]

    @classmethod
    def start(cls, b: int, k: int, g: int, t: int, h: int) -> "Running":
        """No key seen yet."""
        rows = (b, k, g, t)
        return cls(jnp.full(rows, MASKED), jnp.zeros(rows), jnp.zeros((*rows, h)))

    def add(self, scores: Float[Array, "B K G T S"], visible: Bool[Array, "B T S"], v: Float[Array, "B K S H"]):
        """Take in one chunk of S keys, of which each query sees those marked ``visible``."""
        seen = visible[:, None, None]
        scores = jnp.where(seen, scores, MASKED)
        maximum = jnp.maximum(self.maximum, scores.max(axis=-1))
        weights = jnp.where(seen, jnp.exp(scores - maximum[..., None]), 0.0)
        decay = jnp.exp(self.maximum - maximum)
        values = self.values * decay[..., None] + jnp.einsum("bkgts,bksh->bkgth", weights, v, precision="highest")
        return Running(maximum, self.total * decay + weights.sum(axis=-1), values)

    def result(self) -> Float[Array, "B K G T H"]:
        """The attention output; 0 for a query that saw no key."""
        return self.values / jnp.where(self.total == 0, 1.0, self.total)[..., None]


def _walk(
    q: Float[Array, "B T K G H"], positions: Int32[Array, "B T"], context: Context, soft_cap: float
) -> Float[Array, "B T K G H"]:
    """Attention of queries at absolute ``positions`` (-1 sees nothing) over all keys at or before them."""
    k_pages, v_pages, layer, table, _, window = context
    page = k_pages.page_size
    chunk_pages = max(1, CHUNK_TOKENS // page)
    table = jnp.pad(table, ((0, 0), (0, -table.shape[1] % chunk_pages)))
    span = chunk_pages * page

    def add_chunk(i, state: Running) -> Running:
        ids = lax.dynamic_slice_in_dim(table, i * chunk_pages, chunk_pages, axis=1)
        scores = jnp.einsum("btkgh,bksh->bkgts", q, k_pages.gather(layer, ids), precision="highest")
        if soft_cap:
            scores = soft_cap * jnp.tanh(scores / soft_cap)
        distance = positions[:, :, None] - (i * span + jnp.arange(span, dtype=jnp.int32))
        visible = (distance >= 0) & ((window == 0) | (distance < window))
        # The rest of a page may hold what an earlier owner left there: a NaN or infinity times weight 0 would be NaN.
        needed = visible.any(axis=1)[:, None, :, None]
        return state.add(scores, visible, jnp.where(needed, v_pages.gather(layer, ids), 0.0))

    b, t, kv_heads, groups, h = q.shape
    last = positions.max()
    first = jnp.where(positions >= 0, positions, last).min()
    begin = jnp.where(window > 0, jnp.maximum(first - window + 1, 0) // span, 0)
    state = lax.fori_loop(begin, last // span + 1, add_chunk, Running.start(b, kv_heads, groups, t, h))
    return state.result().transpose(0, 3, 1, 2, 4)


def _grouped(q: Float[Array, "T N H"], kv_heads: int, scale: float) -> Float[Array, "T K G H"]:
    t, n, h = q.shape
    return q.astype(jnp.float32).reshape(t, kv_heads, n // kv_heads, h) * scale


def decode_reference(
    q: Float[Array, "B N H"], context: Context, *, scale: float, soft_cap: float = 0.0
) -> Float[Array, "B N H"]:
    """One query token per sequence, at the last position of its context; 0 where the context is empty."""
    grouped = _grouped(q, context.k_pages.values.shape[2], scale)
    out = _walk(grouped[:, None], context.lens[:, None] - 1, context, soft_cap)
    return out.reshape(q.shape).astype(q.dtype)


def prefill_reference(
    q: Float[Array, "T N H"],
    context: Context,
    query_start: Int32[Array, " S"],
    *,
    scale: float,
    soft_cap: float = 0.0,
) -> Float[Array, "T N H"]:
    """Ragged chunks of new tokens: row b owns queries ``query_start[b]:query_start[b + 1]``, the last ones of its context.

    S is B + 1. Queries of no row (padding) come out 0.
    """
    t = q.shape[0]
    tile = min(QUERY_TILE, t)
    grouped = jnp.pad(_grouped(q, context.k_pages.values.shape[2], scale), ((0, tile), (0, 0), (0, 0), (0, 0)))
    starts, lens = query_start[:-1], jnp.diff(query_start)

    def add_row(row, out):
        def add_tile(i, out):
            begin = starts[row] + i * tile
            place = i * tile + jnp.arange(tile, dtype=jnp.int32)
            mine = place < lens[row]
            positions = jnp.where(mine, context.lens[row] - lens[row] + place, -1)
            queries = lax.dynamic_slice_in_dim(grouped, begin, tile)
            table = lax.dynamic_slice_in_dim(context.block_table, row, 1)
            new = _walk(queries[None], positions[None], context._replace(block_table=table), soft_cap)[0]
            old = lax.dynamic_slice_in_dim(out, begin, tile)
            return lax.dynamic_update_slice_in_dim(out, jnp.where(mine[:, None, None, None], new, old), begin, axis=0)

        return lax.fori_loop(0, -(-lens[row] // tile), add_tile, out)

    rows = jnp.sum(lens > 0)
    out = lax.fori_loop(0, rows, add_row, jnp.zeros_like(grouped))
    return out[:t].reshape(q.shape).astype(q.dtype)
