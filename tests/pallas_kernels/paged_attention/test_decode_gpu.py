"""The decode kernel on a GPU, against float64 with the same quantized cache."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.kv_write.reference import dequantize_heads, quantize_heads
from pallas_kernels.paged_attention.api import paged_decode
from pallas_kernels.paged_attention.reference import Pages

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU"),
]

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
        pages, length = self.pools[which], int(self.lens[row])
        ids = self.table[row, : -(-length // self.page)]
        x = pages.values[LAYER, ids]
        if pages.pairs is not None:
            x = dequantize_heads(x, pages.pairs[LAYER, ids], bits=self.bits)
        x = np.asarray(x.astype(jnp.float32), np.float64).transpose(0, 2, 1, 3)
        return x.reshape(-1, *x.shape[2:])[:length]

    def decode(self, q, rows=slice(None), window=0, soft_cap=0.0):
        arguments = (jnp.int32(LAYER), jnp.asarray(self.table[rows]), jnp.asarray(self.lens[rows]), jnp.int32(window))
        run = partial(paged_decode, scale=q.shape[-1] ** -0.5, soft_cap=soft_cap, implementation="mosaic")
        return np.asarray(run(q[rows], *self.pools, *arguments).astype(jnp.float32), np.float64)

    def oracle(self, q, window=0, soft_cap=0.0):
        q = np.asarray(q.astype(jnp.float32), np.float64)
        out = np.zeros(q.shape)
        group = q.shape[1] // self.pools[0].values.shape[2]
        for row, length in enumerate(self.lens):
            k, v = (np.repeat(self.tokens(i, row), group, axis=1)[-window if window else None :] for i in range(2))
            if length:
                scores = np.einsum("nh,snh->ns", q[row], k) * q.shape[-1] ** -0.5
                if soft_cap:
                    scores = soft_cap * np.tanh(scores / soft_cap)
                weights = np.exp(scores - scores.max(axis=1, keepdims=True))
                out[row] = np.einsum("ns,snh->nh", weights / weights.sum(axis=1, keepdims=True), v)
        return out


def queries(rows, heads, head_dim, seed=7):
    return jax.random.normal(jax.random.key(seed), (rows, heads, head_dim), jnp.bfloat16)


def error(out, expected):
    assert np.isfinite(out).all()
    return np.linalg.norm(out - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "page"),
    [
        (32, 8, 128, 64),
        (32, 8, 128, 16),
        (9, 3, 64, 64),
        (4, 4, 128, 128),
        (28, 4, 128, 32),
        (16, 1, 128, 64),
        (4, 1, 256, 64),
    ],
)
def test_ragged_lengths(bits, heads, kv_heads, head_dim, page):
    lens = [0, 1, page - 1, page, page + 1, 511, 512, 513, 3000]
    cache = Cache(lens, kv_heads=kv_heads, head_dim=head_dim, bits=bits, page=page)
    q = queries(len(lens), heads, head_dim)
    out = cache.decode(q)
    assert not out[0].any(), "an empty context comes out 0"
    assert error(out, cache.oracle(q)) < BAR


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("options", [{"window": 1}, {"window": 100}, {"window": 4096}, {"soft_cap": 5.0}], ids=str)
def test_window_and_soft_cap(bits, options):
    cache = Cache([700, 99, 2000], kv_heads=2, head_dim=128, bits=bits, page=64)
    q = queries(3, 8, 128) * 3
    assert error(cache.decode(q, **options), cache.oracle(q, **options)) < BAR


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_long_context(bits):
    cache = Cache([131072, 5], kv_heads=2, head_dim=128, bits=bits, page=64)
    q = queries(2, 8, 128)
    assert error(cache.decode(q), cache.oracle(q)) < BAR


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_the_same_bits_every_time_and_in_any_company(bits):
    lens = np.random.default_rng(0).integers(0, 3000, 256)
    cache = Cache(lens, kv_heads=8, head_dim=128, bits=bits, page=64)
    q = queries(256, 32, 128)
    out = cache.decode(q)
    assert error(out, cache.oracle(q)) < BAR
    for _ in range(20):
        assert np.array_equal(cache.decode(q), out)
    for rows in (slice(3, 4), slice(10, 90), slice(255, None, -1)):
        assert np.array_equal(cache.decode(q, rows), out[rows])
