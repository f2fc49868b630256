"""The prefill kernel on a GPU, against float64 with the same quantized cache."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.attention_cache import BAR, LAYER, Cache, error, queries

from pallas_kernels.paged_attention.api import paged_prefill

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU"),
]


def prefill(cache: Cache, q, news, window=0, soft_cap=0.0):
    starts = np.concatenate([[0], np.cumsum(news)]).astype(np.int32)
    arrays = jnp.asarray(cache.table), jnp.asarray(starts), jnp.asarray(cache.lens), jnp.int32(window)
    run = partial(paged_prefill, scale=q.shape[-1] ** -0.5, soft_cap=soft_cap, implementation="mosaic")
    return np.asarray(run(q, *cache.pools, jnp.int32(LAYER), *arrays).astype(jnp.float32), np.float64)


def oracle(cache: Cache, q, news, window=0, soft_cap=0.0):
    q = np.asarray(q.astype(jnp.float32), np.float64)
    out, token = np.zeros(q.shape), 0
    for row, new in enumerate(news):
        for position in range(int(cache.lens[row]) - new, int(cache.lens[row])):
            out[token] = cache.attend(q[token], row, position + 1, window, soft_cap)
            token += 1
    return out


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "page"), [(8, 2, 128, 64), (9, 3, 64, 16), (4, 4, 128, 128), (8, 1, 64, 32)]
)
def test_ragged_chunks_over_their_prefixes(bits, heads, kv_heads, head_dim, page):
    lens, news = [1, 200, 700, page, page + 1, 64, 129], [1, 200, 131, page, 1, 3, 128]
    cache = Cache(lens, kv_heads=kv_heads, head_dim=head_dim, bits=bits, page=page)
    tokens = sum(news) + 37
    q = queries(tokens, heads, head_dim)
    out = prefill(cache, q, news)
    assert not out[sum(news) :].any(), "padding comes out 0"
    assert error(out, oracle(cache, q, news)) < BAR
    assert np.array_equal(prefill(cache, q, news), out)


@pytest.mark.parametrize("padding", [1, 65, 495, 2000])
@pytest.mark.parametrize("bits", [16, 4])
def test_padding_of_any_length_comes_to_an_end(bits, padding):
    lens, news = [513, 520, 512], [1, 1, 466]
    cache = Cache(lens, kv_heads=2, head_dim=128, bits=bits, page=64)
    q = queries(sum(news) + padding, 4, 128)
    out = prefill(cache, q, news)
    assert not out[sum(news) :].any()
    assert error(out, oracle(cache, q, news)) < BAR


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("options", [{"window": 1}, {"window": 90}, {"soft_cap": 5.0}], ids=str)
def test_window_and_soft_cap(bits, options):
    lens, news = [300, 500], [151, 129]
    cache = Cache(lens, kv_heads=2, head_dim=128, bits=bits, page=64)
    q = queries(sum(news), 4, 128)
    assert error(prefill(cache, q, news, **options), oracle(cache, q, news, **options)) < BAR
