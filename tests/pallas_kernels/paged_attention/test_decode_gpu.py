"""The decode kernel on a GPU, against float64 with the same quantized cache."""

import jax
import numpy as np
import pytest
from support.attention_cache import BAR, Cache, error, queries

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU"),
]


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
