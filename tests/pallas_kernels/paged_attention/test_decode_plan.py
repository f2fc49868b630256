"""How decode cuts contexts, copies pages and joins chunks, by the emulator of a warpgroup."""

import jax.numpy as jnp
import numpy as np
import pytest
from support.thread_emulator import THREADS, Threads, value

from pallas_kernels import ptx
from pallas_kernels.paged_attention.decode_layout import Shape
from pallas_kernels.paged_attention.fragments import Stored
from pallas_kernels.paged_attention.merge_mosaic import emit_merge
from pallas_kernels.paged_attention.page_copies import PageCopies
from pallas_kernels.paged_attention.split import MAX_CHUNKS, Split
from pallas_kernels.ptx import Int

LENGTHS = np.array([*range(70), 127, 128, 129, *range(500, 530), 1023, 1024, 1025, *range(15000, 150000, 8000)])


def ints(x) -> Int:
    return Int(value(x, np.uint32))


@pytest.mark.parametrize("tile", [64, 128])
@pytest.mark.parametrize("window", [0, 1, 100, 5000])
@pytest.mark.parametrize("queries", [1, 8])
def test_chunks_cover_what_the_queries_see(monkeypatch, tile, window, queries):
    Threads(monkeypatch, 1024)
    lengths = np.resize(LENGTHS, THREADS)
    split = Split.of(tile=tile, chunk=512, table_tokens=1 << 18)
    context = split.cut(ints(lengths), ptx.constant(window), queries)
    got = {
        name: np.asarray(getattr(context, name).value, int) for name in ("first", "begin", "end", "per_chunk", "chunks")
    }
    assert np.array_equal(got["first"], np.maximum(lengths - window - queries + 1, 0) if window else 0 * lengths)
    assert np.array_equal(got["begin"], got["first"] // tile)
    assert np.array_equal(got["end"], -(-lengths // tile))
    tiles = got["end"] - got["begin"]
    assert np.array_equal(got["chunks"] == 0, lengths == 0)
    assert (got["chunks"] <= MAX_CHUNKS).all()
    some = tiles > 0
    # All tiles are taken, and no chunk is empty.
    assert (got["chunks"] * got["per_chunk"] >= tiles)[some].all()
    assert ((got["chunks"] - 1) * got["per_chunk"] < tiles)[some].all()


@pytest.mark.parametrize("page_size", [16, 64, 128])
@pytest.mark.parametrize(("token", "length"), [(64, 1000), (192, 193), (128, 170), (64, 1), (192, 150)])
def test_a_tile_is_copied_from_its_pages(monkeypatch, page_size, token, length):
    layers, pages, kv_heads, row, head, layer, tile = 2, 80, 3, 1, 2, 1, 64
    rng = np.random.default_rng(0)
    threads = Threads(monkeypatch, 1 << 22)
    sizes = [48, 4]
    pools = [rng.integers(0, 256, (layers, pages, kv_heads, page_size, size), np.uint8) for size in sizes]
    count = -(-length // page_size)
    table = np.full((2, 70), 1 << 30, np.int32)
    table[row, :count] = rng.permutation(pages)[:count]
    refs, table_ref = [threads.put(p) for p in pools], threads.put(table)
    target = threads.put(np.zeros((tile * sum(sizes),), np.uint8))
    copies = PageCopies(
        [ptx.global_address(r) for r in refs], sizes, [0, tile * sizes[0]], ptx.global_address(table_ref), 70,
        ptx.constant(layer), pages, kv_heads, page_size, tile,
    )  # fmt: skip
    thread = ptx.thread_index()
    with threads.when(thread < 32):
        arguments = (ptx.constant(x) for x in (row, head, token, length))
        copies.start(ptx.shared_address(target), ptx.constant(0), thread % 32, *arguments)
    assert threads.announced == threads.copied
    assert (threads.copied > 0) == (token < length), (
        "nothing is copied of a tile past the end, no table entry looked at"
    )
    out = threads.get(target, np.uint8)
    for pool, size, start in zip(pools, sizes, (0, tile * sizes[0]), strict=True):
        for i in range(min(tile, length - token)):
            page = table[row, (token + i) // page_size]
            expected = pool[layer, page, head, (token + i) % page_size]
            assert np.array_equal(out[start + i * size : start + (i + 1) * size], expected)


@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_chunks_are_joined(monkeypatch, head_dim):
    threads = Threads(monkeypatch, 1 << 23)
    lengths, heads, split = np.array([0, 1, 700, 20000], np.int32), 2, Split.of(tile=64, chunk=512, table_tokens=20000)
    rng = np.random.default_rng(0)
    most = 2  # queries of a row, each of which has the one that is there
    shape = (len(lengths), split.max_chunks, heads * most, head_dim)
    call = Shape(
        batch=len(lengths), heads=heads, kv_heads=1, pages=1, page_size=64, table_width=320, stored=Stored(head_dim, 16),
        query_dtype="bf16", scale=1.0, soft_cap=0.0, queries=most,
    )  # fmt: skip
    partials, stats = rng.normal(size=shape).astype(np.float32), rng.normal(size=(*shape[:3], 2)).astype(np.float32)
    stats[..., 1] = np.abs(stats[..., 1]) + 0.1
    chunks = [0, 1, 2, 32]
    for row, count in enumerate(chunks):
        partials[row, count:], stats[row, count:] = np.nan, np.nan
    starts = np.arange(len(lengths) + 1, dtype=np.int32)
    inputs = [threads.put(x) for x in (lengths, np.zeros(1, np.int32), starts, partials, stats)]
    out = threads.put(np.full((len(lengths), heads, head_dim), 7, jnp.bfloat16))
    for block in range(2):
        monkeypatch.setattr(ptx, "block_index", lambda block=block: ptx.constant(block))
        emit_merge(call, split, len(lengths), "bfloat16", [ptx.global_address(r) for r in [*inputs, out]])
    got = threads.get(out, jnp.bfloat16).astype(np.float64)
    assert not got[0].any(), "an empty context comes out 0"
    for row, count in list(enumerate(chunks))[1:]:
        maxima, sums = stats[row, :count, :heads, 0].astype(np.float64), stats[row, :count, :heads, 1]
        weights = np.exp2(maxima - maxima.max(axis=0))
        total = (weights * sums).sum(axis=0)
        expected = (weights[..., None] * partials[row, :count, :heads]).sum(axis=0) / total[:, None]
        assert np.abs(got[row] - expected).max() < 0.004 * np.abs(expected).max()
