"""Every query is in one tile of its own row, none in two; the two warpgroups of a tile go round equally often."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.paged_attention.prefill_mosaic import steps_of_warpgroup
from pallas_kernels.paged_attention.prefill_tiles import QUERY_TILE, WARPGROUP_QUERIES, Tiles


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


def test_rows_left_out_have_no_tiles():
    news, tokens = [1, 200, 1, 1, 129, 0], 512
    starts = jnp.asarray(np.concatenate([[0], np.cumsum(news)]), jnp.int32)
    tiles = Tiles.of(starts, tokens, jnp.asarray(news) == 1)
    found = [(int(r), int(b), int(e)) for r, b, e in zip(*tiles, strict=True) if b < e]
    assert found[:4] == [(1, 1, 201), (1, 129, 201), (4, 203, 332), (4, 331, 332)]
    assert {row for row, *_ in found[4:]} == {len(news)}, "padding"


@pytest.mark.parametrize("key_tile", [64, 128])
@pytest.mark.parametrize("window", [1, 90, 1 << 30])
@pytest.mark.parametrize(("length", "new"), [(0, 495), (0, 65), (0, 1), (513, 1), (512, 466), (700, 131), (64, 64)])
def test_warpgroups_of_a_tile_take_equally_many_turns(length, new, window, key_tile):
    """Length 0 is padding, whose queries stand at negative positions. Unequal turns would wait for each other forever."""
    for begin in range(0, new, QUERY_TILE):
        first = length - (new - begin)
        seen_end = min(first + QUERY_TILE, length) if length else 0
        step_begin, step_end = max(first - window + 1, 0) // key_tile, -(-seen_end // key_tile)
        turns = []
        for group in range(2):
            position = first + group * WARPGROUP_QUERIES
            bounds = steps_of_warpgroup(*(jnp.int32(x) for x in (position, window, step_begin, step_end)), key_tile)
            full_begin, full_end, mine_end = (int(x) for x in bounds)
            assert step_begin <= full_begin <= full_end <= mine_end <= max(step_begin, step_end)
            ranges = [(step_begin, full_begin), (full_begin, full_end), (full_end, mine_end), (mine_end, step_end)]
            turns.append(sum(max(0, stop - start) for start, stop in ranges))
            for step in range(step_begin, step_end):
                seen = [
                    (q, k) for q in (position, position + WARPGROUP_QUERIES - 1)
                    for k in (step * key_tile, step * key_tile + key_tile - 1)
                ]  # fmt: skip
                if full_begin <= step < full_end:
                    assert all(0 <= q - k < window for q, k in seen), "seen in full, so not masked"
                if step >= mine_end:
                    assert all(k > q for q, k in seen), "not seen at all"
        assert turns == [max(0, step_end - step_begin)] * 2
