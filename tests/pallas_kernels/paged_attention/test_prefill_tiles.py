"""Every query is in one tile of its own row, none in two."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.paged_attention.prefill_tiles import QUERY_TILE, Tiles


@pytest.mark.parametrize(
    ("news", "tokens"),
    [
        ([200, 300, 1, 128, 129], 1024),
        ([7], 7),
        ([7], 8),
        ([128, 128, 0, 0], 256),
        ([0, 0], 300),
        ([1] * 9, 9),
        ([513, 0], 513),
    ],
)
def test_tiles_cover_all_queries_once(news, tokens):
    starts = np.concatenate([[0], np.cumsum(news)]).astype(np.int32)
    tiles = Tiles.of(jnp.asarray(starts), tokens)
    owner = np.full(tokens, -1)
    for row, begin, end in zip(*(np.asarray(x) for x in tiles), strict=True):
        if begin < end:
            mine = owner[begin : min(begin + QUERY_TILE, end)]
            assert (mine == -1).all()
            mine[:] = row
    expected = np.repeat(np.arange(len(news) + 1), [*news, tokens - starts[-1]])
    assert np.array_equal(owner, expected)
