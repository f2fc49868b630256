"""Sequences of random keys and values in pages, and float64 attention over them as they are stored."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.kv_write.reference import dequantize_heads, quantize_heads
from pallas_kernels.paged_attention.api import paged_decode
from pallas_kernels.paged_attention.reference import Pages

LAYERS, LAYER, SPARE = 2, 1, 3
BAR = 5e-3  # of the issue, for bfloat16 outputs


class Cache:
    """Random keys and values of sequences in shuffled pages; pages and table entries that nobody may use are poisoned."""

    def __init__(self, lens, *, kv_heads, head_dim, bits, page, seed=0):
        rng = np.random.default_rng(seed)
        self.lens, self.bits, self.page = np.asarray(lens, np.int32), bits, page
        counts = -(-self.lens // page)
        pages = int(counts.sum()) + SPARE
        ids = rng.permutation(pages)
        self.table = np.full((len(lens), max(1, int(counts.max()))), 1 << 30, np.int32)
        for row, (start, count) in enumerate(zip(np.cumsum(counts) - counts, counts, strict=True)):
            self.table[row, :count] = ids[start : start + count]
        self._layers: dict[int, np.ndarray] = {}
        self.pools = [self._pool(jax.random.key(seed + i), pages, kv_heads, head_dim) for i in range(2)]

    def _pool(self, key, pages, kv_heads, head_dim) -> Pages:
        lead = (LAYERS, pages, kv_heads, self.page)
        x = jax.random.normal(key, (*lead, head_dim), jnp.float32)
        if self.bits == 16:
            values = np.array(x.astype(jnp.bfloat16))
            self._poison(values, np.nan)
            return Pages(jnp.asarray(values), None, 16)
        values, pairs = jax.jit(partial(quantize_heads, bits=self.bits))(x.reshape(-1, 1, head_dim))
        pairs = np.array(pairs).reshape(*lead, 2)
        self._poison(pairs, np.nan)
        return Pages(values.reshape(*lead, -1), jnp.asarray(pairs), self.bits)

    def _poison(self, pool, value):
        used = np.zeros(pool.shape[1:4], bool)
        for row, length in enumerate(self.lens):
            for i in range(-(-int(length) // self.page)):
                used[self.table[row, i], :, : max(0, min(self.page, int(length) - i * self.page))] = True
        pool[:, ~used] = value

    def tokens(self, which: int, row: int) -> np.ndarray:
        """Keys or values of a sequence as they are stored, float64 [S, K, H]."""
        if which not in self._layers:
            # The whole layer at once: by row it would be a program for each length.
            pages = self.pools[which]
            x = pages.values[LAYER]
            if pages.pairs is not None:
                x = dequantize_heads(x, pages.pairs[LAYER], bits=self.bits)
            self._layers[which] = np.asarray(x.astype(jnp.float32))
        length = int(self.lens[row])
        x = self._layers[which][self.table[row, : -(-length // self.page)]].transpose(0, 2, 1, 3)
        return x.reshape(-1, *x.shape[2:])[:length].astype(np.float64)

    def decode(self, q, rows=slice(None), window=0, soft_cap=0.0, implementation="mosaic"):
        arguments = (jnp.int32(LAYER), jnp.asarray(self.table[rows]), jnp.asarray(self.lens[rows]), jnp.int32(window))
        run = partial(paged_decode, scale=q.shape[-1] ** -0.5, soft_cap=soft_cap, implementation=implementation)
        return np.asarray(run(q[rows], *self.pools, *arguments).astype(jnp.float32), np.float64)

    def attend(self, q, row, end, window=0, soft_cap=0.0):
        """One query [N, H] over the first ``end`` tokens of a sequence, float64."""
        return self.attend_last(q[None], row, end, window, soft_cap)[0]

    def attend_last(self, q, row, end, window=0, soft_cap=0.0):
        """Queries [T, N, H] that are the last of the first ``end`` tokens of a sequence, float64."""
        count, heads, head_dim = q.shape
        k, v = (self.tokens(i, row)[:end].transpose(1, 0, 2) for i in range(2))
        kv_heads, group = len(k), heads // len(k)
        grouped = q.reshape(count, kv_heads, group, head_dim).transpose(1, 0, 2, 3).reshape(kv_heads, -1, head_dim)
        scores = (grouped @ k.transpose(0, 2, 1) * head_dim**-0.5).reshape(kv_heads, count, group, end)
        if soft_cap:
            scores = soft_cap * np.tanh(scores / soft_cap)
        back = (end - count + np.arange(count))[:, None] - np.arange(end)
        seen = (back >= 0) & ((back < window) if window else True)
        scores = np.where(seen[:, None], scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out = (weights.reshape(kv_heads, -1, end) @ v).reshape(kv_heads, count, group, head_dim)
        return out.transpose(1, 0, 2, 3).reshape(q.shape)

    def oracle(self, q, window=0, soft_cap=0.0):
        """One query of each sequence, at its end; 0 for an empty one."""
        q = np.asarray(q.astype(jnp.float32), np.float64)
        rows = (self.attend(q[i], i, int(n), window, soft_cap) if n else 0 * q[i] for i, n in enumerate(self.lens))
        return np.stack(list(rows))


def queries(rows, heads, head_dim, seed=7):
    return jax.random.normal(jax.random.key(seed), (rows, heads, head_dim), jnp.bfloat16)


def error(out, expected):
    assert np.isfinite(out).all()
    return np.linalg.norm(out - expected) / np.linalg.norm(expected)
