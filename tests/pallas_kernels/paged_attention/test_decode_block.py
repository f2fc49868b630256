"""The whole decode kernel and its merge, block by block, by the emulator: against float64 with the same quantized cache.

In lockstep the copying warps run first, so a block is given a ring and slots for all that it has to do.
"""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from support.attention_cache import LAYER, Cache, queries
from support.thread_emulator import Threads, value

from pallas_kernels import ptx, ptx_sync
from pallas_kernels.paged_attention import decode_mosaic
from pallas_kernels.paged_attention.decode_layout import SLOTS, DecodeConfig, Layout, Shape
from pallas_kernels.paged_attention.fragments import Stored
from pallas_kernels.paged_attention.merge_mosaic import emit_merge
from pallas_kernels.paged_attention.split import Split

CHUNK, GROUPS, MEMORY = 128, 2, 1 << 24


def decode(monkeypatch, cache: Cache, q, most: int, starts=None, *, window=0, soft_cap=0.0, tile=64) -> np.ndarray:
    """What the kernels make of queries [T, N, H]; ``starts`` is where each row's begin, None for one each."""
    heads, head_dim = q.shape[1:]
    values = cache.pools[0].values
    shape = Shape(
        batch=len(cache.lens), heads=heads, kv_heads=values.shape[2], pages=values.shape[1], page_size=cache.page,
        table_width=cache.table.shape[1], stored=Stored(head_dim, cache.bits), query_dtype="bf16",
        scale=head_dim**-0.5, soft_cap=soft_cap, queries=most,
    )  # fmt: skip
    split = Split.of(tile=tile, chunk=CHUNK, table_tokens=shape.table_width * cache.page)
    units = len(cache.lens) * split.max_chunks * shape.kv_heads * shape.parts
    pipelines, tiles = -(-units // SLOTS), SLOTS * -(-int(cache.lens.max()) // tile)
    config = DecodeConfig(tile, CHUNK, GROUPS, tiles, -(-pipelines // GROUPS))
    layout = Layout(shape, config)

    threads = Threads(monkeypatch, MEMORY, 128 * (GROUPS + 1))
    monkeypatch.setattr(ptx_sync, "publish_barriers", lambda: None)
    warps = SimpleNamespace(warp_idx=lambda: value(np.arange(128 * (GROUPS + 1)) // 32, np.uint32))
    monkeypatch.setattr(decode_mosaic, "utils", warps)
    rows = [threads.put(np.asarray(x)) for x in (cache.table, cache.lens, np.array([window], np.int32))]
    inputs = [threads.put(np.asarray(q)), threads.put(np.array([LAYER], np.int32)), *rows]
    places = [] if starts is None else [threads.put(np.asarray(starts, np.int32))]
    pools = [threads.put(np.asarray(p.values)) for p in cache.pools]
    pools += [threads.put(np.asarray(p.pairs)) for p in cache.pools if p.pairs is not None]
    lead = (shape.batch, split.max_chunks, shape.rows)
    partials = threads.put(np.full((*lead, head_dim), np.nan, np.float32))
    stats = threads.put(np.full((*lead, 2), np.nan, np.float32))
    out = threads.put(np.full(q.shape, 7, jnp.bfloat16))
    shared = threads.put(np.full(layout.total // 4, -1, np.int32))  # NaN, whatever it is read as

    def block_is(number: int) -> None:
        monkeypatch.setattr(ptx, "block_index", lambda: ptx.constant(number))

    for number in range(config.grid):
        block_is(number)
        buffers = [*inputs, *places, *pools, partials, stats, shared]
        decode_mosaic._Block(shape, config, split, layout, buffers).run()
    assert threads.announced == threads.copied, "barriers wait for what is copied"
    monkeypatch.setattr("support.thread_emulator.THREADS", 128)
    addresses = [ptx.global_address(r) for r in [rows[1], rows[2], *places, partials, stats, out]]
    for number in range(-(-q.shape[0] * heads // 4)):
        block_is(number)
        emit_merge(shape, split, q.shape[0], "bfloat16", addresses)
    return threads.get(out, jnp.bfloat16).astype(np.float64)


def check(out, cache: Cache, q, counts, **options) -> None:
    """Every query of every row, at its own place in the context."""
    q, token = np.asarray(q.astype(jnp.float32), np.float64), 0
    for row, count in enumerate(counts):
        for end in range(int(cache.lens[row]) - count + 1, int(cache.lens[row]) + 1):
            expected = cache.attend(q[token], row, end, **options)
            assert np.linalg.norm(out[token] - expected) < 5e-3 * np.linalg.norm(expected), (row, end)
            token += 1
    assert not out[token:].any(), "queries of no row"


@pytest.mark.parametrize(
    ("bits", "heads", "kv_heads", "head_dim"), [(16, 8, 2, 64), (8, 18, 1, 128), (4, 2, 2, 96)], ids=str
)
def test_one_query_a_row(monkeypatch, bits, heads, kv_heads, head_dim):
    lens = [150, 0, 1, 65]
    cache = Cache(lens, kv_heads=kv_heads, head_dim=head_dim, bits=bits, page=32)
    q = queries(len(lens), heads, head_dim)
    out, expected = decode(monkeypatch, cache, q, 1), cache.oracle(q)
    for row in range(len(lens)):
        assert np.linalg.norm(out[row] - expected[row]) <= 5e-3 * np.linalg.norm(expected[row]), row


@pytest.mark.parametrize(
    ("bits", "heads", "kv_heads", "head_dim", "most", "options"),
    [
        (16, 4, 2, 64, 4, {"window": 1}),
        (8, 4, 1, 64, 16, {"window": 20}),  # 64 columns: two units
        (4, 4, 4, 96, 8, {}),
        (16, 7, 1, 128, 5, {}),  # 35 columns: units of 16, 16 and 3, the last one of two heads' tokens
        (8, 2, 1, 128, 3, {"soft_cap": 3.0}),
        (4, 3, 1, 256, 3, {"window": 90}),
    ],
    ids=str,
)
def test_several_queries_a_row(monkeypatch, bits, heads, kv_heads, head_dim, most, options):
    lens, counts = [150, 64, 5, 130, 1, 0], [most, 2, most - 1, 1, 1, 0]
    lens[2] = max(lens[2], most)
    cache = Cache(lens, kv_heads=kv_heads, head_dim=head_dim, bits=bits, page=64)
    starts = np.concatenate([[0], np.cumsum(counts)])
    q = queries(int(starts[-1]) + 3, heads, head_dim)
    check(decode(monkeypatch, cache, q, most, starts, **options), cache, q, counts, **options)


def test_a_row_of_more_than_a_kernel_was_made_for_has_zeros_at_its_end(monkeypatch):
    cache = Cache([70, 70], kv_heads=1, head_dim=64, bits=16, page=64)
    q = queries(8, 2, 64)
    out = decode(monkeypatch, cache, q, 2, [0, 6, 8])
    assert not out[2:6].any()
    for token, end in ((6, 69), (7, 70)):
        expected = cache.attend(np.asarray(q[token].astype(jnp.float32), np.float64), 1, end)
        assert np.linalg.norm(out[token] - expected) < 5e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("bits", [16, 4])
def test_tiles_of_128_tokens(monkeypatch, bits):
    lens, counts = [300, 130, 64], [3, 2, 1]
    cache = Cache(lens, kv_heads=1, head_dim=64, bits=bits, page=32)
    q = queries(sum(counts), 2, 64)
    check(decode(monkeypatch, cache, q, 3, np.cumsum([0, *counts]), tile=128, window=150), cache, q, counts, window=150)
