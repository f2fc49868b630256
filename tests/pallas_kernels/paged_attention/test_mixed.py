"""Rows of one query and rows of many in one step, each by its kernel: how the two results become one."""

import jax.numpy as jnp
import numpy as np
import pytest
from support.attention_cache import LAYER, Cache, queries

from pallas_kernels.paged_attention import mosaic
from pallas_kernels.paged_attention.reference import Context, Pages, decode_reference, prefill_reference


@pytest.mark.parametrize("news", [[1, 1, 40, 7], [40, 1, 7, 1], [1, 1, 1, 1], [30, 2, 2, 0], [0, 0, 0, 0]], ids=str)
def test_each_query_is_one_kernels(monkeypatch, news):
    lens, heads, head_dim, tokens = [90, 33, 64, 17], 4, 32, 64
    cache = Cache(lens, kv_heads=2, head_dim=head_dim, bits=16, page=16)
    q = queries(tokens, heads, head_dim)
    held = jnp.asarray([length if new else 0 for length, new in zip(lens, news, strict=True)])
    context = Context(
        *(Pages(pool.values, pool.pairs, 16) for pool in cache.pools), jnp.int32(LAYER), jnp.asarray(cache.table), held,
        jnp.int32(0),
    )  # fmt: skip
    starts = jnp.asarray(np.concatenate([[0], np.cumsum(news)]), jnp.int32)

    def prefill(q, context, starts, *, left_out, **options):
        out = prefill_reference(q, context, starts, **options)
        rows = np.repeat(np.append(left_out, False), [*news, tokens - sum(news)])
        return jnp.where(jnp.asarray(rows)[:, None, None], jnp.nan, out)

    monkeypatch.setattr(mosaic, "prefill", prefill)
    monkeypatch.setattr(mosaic, "decode", decode_reference)
    out = mosaic.mixed(q, context, starts, scale=0.2)
    expected = prefill_reference(q, context, starts, scale=0.2)
    np.testing.assert_allclose(*(np.asarray(a, np.float32) for a in (out, expected)), rtol=2e-2, atol=1e-3)
    assert not np.asarray(out[sum(news) :], np.float32).any()
