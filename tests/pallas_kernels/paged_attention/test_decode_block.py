"""The whole decode kernel, and the merge of several queries, block by block, by the emulator: against float64 with the same cache.

In lockstep the copying warps run first, so a block is given a ring and slots for all that it has to do.
"""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from support.attention_cache import LAYER, Cache, queries
from support.thread_emulator import Threads, value

from pallas_kernels import ptx, ptx_sync
from pallas_kernels.paged_attention import decode_block
from pallas_kernels.paged_attention.decode_block import DecodeBlock
from pallas_kernels.paged_attention.decode_layout import SLOTS, DecodeConfig, Layout, Shape
from pallas_kernels.paged_attention.decode_mosaic import results
from pallas_kernels.paged_attention.fragments import Stored
from pallas_kernels.paged_attention.merge_mosaic import emit_merge
from pallas_kernels.paged_attention.split import Split

CHUNK, GROUPS, MEMORY = 128, 2, 1 << 24


def decode(
    monkeypatch,
    cache: Cache,
    q,
    most: int,
    starts=None,
    *,
    window=0,
    soft_cap=0.0,
    tile=64,
    order=1,
    blocks=None,
    merges=True,
) -> np.ndarray:
    """What the kernels make of queries [T, N, H]; ``starts`` is where each row's begin, None for one each.

    Blocks run in the order of their numbers, or backwards for ``order`` -1. ``merges``: of one query a row, the kernel itself.
    """
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
    config = DecodeConfig(tile, CHUNK, GROUPS, tiles, blocks or -(-pipelines // GROUPS))
    layout = Layout(shape, config)

    threads = Threads(monkeypatch, MEMORY, 128 * (GROUPS + 1))
    monkeypatch.setattr(ptx_sync, "publish_barriers", lambda: None)
    warps = SimpleNamespace(warp_idx=lambda: value(np.arange(128 * (GROUPS + 1)) // 32, np.uint32))
    monkeypatch.setattr(decode_block, "utils", warps)
    rows = [threads.put(np.asarray(x)) for x in (cache.table, cache.lens, np.array([window], np.int32))]
    inputs = [threads.put(np.asarray(q)), threads.put(np.array([LAYER], np.int32)), *rows]
    places = [] if starts is None else [threads.put(np.asarray(starts, np.int32))]
    pools = [threads.put(np.asarray(p.values)) for p in cache.pools]
    pools += [threads.put(np.asarray(p.pairs)) for p in cache.pools if p.pairs is not None]
    counts = np.zeros((shape.batch, shape.kv_heads, shape.parts), np.int32)
    merges = merges and most == 1
    counters = [threads.put(counts)] if merges and split.max_chunks > 1 else []
    written = [threads.put(np.full(r.shape, np.nan, r.dtype)) for r in results(shape, split, "bfloat16", merges=merges)]
    shared = threads.put(np.full(layout.total // 4, -1, np.int32))  # NaN, whatever it is read as

    def block_is(number: int) -> None:
        monkeypatch.setattr(ptx, "block_index", lambda: ptx.constant(number))

    for number in range(config.grid)[::order]:
        block_is(number)
        arrays = [*inputs, *places, *pools, *counters, *written]
        DecodeBlock(shape, config, split, layout, [*arrays, shared], merges=merges).run()
    assert threads.announced == threads.copied, "barriers wait for what is copied"
    assert not any(threads.get(c, np.int32).any() for c in counters), "the next call finds zeros"
    if merges:
        return threads.get(written[0], jnp.bfloat16).astype(np.float64)
    out = threads.put(np.full(q.shape, 7, jnp.bfloat16))
    monkeypatch.setattr("support.thread_emulator.THREADS", 128)
    addresses = [ptx.global_address(r) for r in [rows[1], rows[2], *places, *written, out]]
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


def check_rows(out, cache: Cache, q, **options) -> None:
    """One query of each row."""
    expected = cache.oracle(q, **options)
    for row in range(len(expected)):
        assert np.linalg.norm(out[row] - expected[row]) <= 5e-3 * np.linalg.norm(expected[row]), row


@pytest.mark.parametrize(
    ("bits", "heads", "kv_heads", "head_dim", "options"),
    [
        (16, 8, 2, 64, {}),
        (16, 7, 1, 128, {"window": 200}),  # a warp merges two columns, another one
        (8, 18, 1, 128, {}),  # two units of a KV head's columns
        (8, 4, 1, 64, {"soft_cap": 3.0}),
        (4, 2, 2, 96, {"window": 20}),
    ],
    ids=str,
)
def test_one_query_a_row(monkeypatch, bits, heads, kv_heads, head_dim, options):
    """Contexts of 0 to 3 chunks; whichever block stores the last chunk of one, and by two kernels, the bits are the same."""
    cache = Cache([150, 0, 1, 65, 300, 128], kv_heads=kv_heads, head_dim=head_dim, bits=bits, page=32)
    q = queries(len(cache.lens), heads, head_dim)
    out = decode(monkeypatch, cache, q, 1, **options)
    check_rows(out, cache, q, **options)
    for other in ({"order": -1}, {"merges": False}):
        with monkeypatch.context() as again:
            assert np.array_equal(decode(again, cache, q, 1, **options, **other), out)


@pytest.mark.parametrize(("bits", "length"), [(16, 1300), (4, 4200)], ids=str)
def test_more_chunks_than_are_loaded_at_a_time(monkeypatch, bits, length):
    cache = Cache([length], kv_heads=1, head_dim=64, bits=bits, page=64)
    q = queries(1, 2, 64)
    out = decode(monkeypatch, cache, q, 1)
    check_rows(out, cache, q)
    with monkeypatch.context() as again:
        assert np.array_equal(decode(again, cache, q, 1, order=-1), out)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_tables_of_one_chunk_need_no_partial_results(monkeypatch, bits):
    cache = Cache([100, 0, 1, 128], kv_heads=2, head_dim=64, bits=bits, page=32)
    q = queries(len(cache.lens), 6, 64)
    check_rows(decode(monkeypatch, cache, q, 1), cache, q)


@pytest.mark.parametrize("blocks", [1, 2, 9])
def test_rows_without_tokens_are_zeros(monkeypatch, blocks):
    """None of them has a unit; 100 pieces of 16 bytes are no multiple of what a warp stores at a time."""
    cache = Cache([0, 0, 0, 70, 0, 0, 0], kv_heads=1, head_dim=80, bits=16, page=32)
    q = queries(len(cache.lens), 10, 80)
    check_rows(decode(monkeypatch, cache, q, 1, blocks=blocks), cache, q)


def test_a_row_has_the_same_bits_in_other_company(monkeypatch):
    heads, head_dim = 4, 64
    cache = Cache([150, 90, 300, 0, 20], kv_heads=2, head_dim=head_dim, bits=8, page=32)
    q = queries(len(cache.lens), heads, head_dim)
    out = decode(monkeypatch, cache, q, 1)
    rows = [2, 0]
    cache.lens, cache.table = cache.lens[rows], cache.table[rows]
    with monkeypatch.context() as again:
        assert np.array_equal(decode(again, cache, q[np.array(rows)], 1), out[rows])


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
