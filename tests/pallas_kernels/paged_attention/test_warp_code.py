"""The kernels' per-thread code, run by an emulator of a warpgroup: what the GPU tests check, where there is no GPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.thread_emulator import Ref, Threads

from pallas_kernels import ptx
from pallas_kernels.kv_write.reference import dequantize_heads, quantize_heads
from pallas_kernels.paged_attention import prefill_convert, swizzled
from pallas_kernels.paged_attention.chunk_merge import Partials
from pallas_kernels.paged_attention.decode_layout import Shape
from pallas_kernels.paged_attention.decode_warp import DecodeWarp
from pallas_kernels.paged_attention.fragments import Stored
from pallas_kernels.paged_attention.prefill_convert import RawTiles, _pieces, convert_raw
from pallas_kernels.paged_attention.split import Split
from pallas_kernels.paged_attention.unit_result import Targets, UnitResult

SCALE = 0.1


def stored_tokens(count: int, head_dim: int, bits: int, seed: int):
    """Values and pairs of a tile as they are stored, and what they stand for."""
    x = jax.random.normal(jax.random.key(seed), (count, 1, head_dim), jnp.float32)
    if bits == 16:
        values = np.array(x.astype(jnp.bfloat16))[:, 0]
        return values, np.zeros((count, 2), np.float16), np.array(values, np.float64)
    q, pairs = quantize_heads(x, bits=bits)
    return (
        np.asarray(q)[:, 0],
        np.asarray(pairs)[:, 0],
        np.asarray(dequantize_heads(q, pairs, bits=bits), np.float64)[:, 0],
    )


def unswizzled(memory: np.ndarray, rows: int, width: int) -> np.ndarray:
    """[R, H] from tiles of 8 x 64 whose 16-byte chunks are permuted by the row, or of 8 x 32 whose are by pairs of rows."""
    across, shared = (8, 1) if width % 64 == 0 else (4, 2)
    tiles = memory.reshape(rows // 8, width // (8 * across), 8, across, 8)
    plain = np.stack([tiles[:, :, r, np.arange(across) ^ (r // shared)] for r in range(8)], axis=2)
    return plain.transpose(0, 2, 1, 3, 4).reshape(rows, width)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("head_dim", "tile"), [(64, 64), (96, 64), (128, 64), (256, 16), (256, 32)])
def test_integer_tiles_become_float16(monkeypatch, bits, head_dim, tile):
    threads = Threads(monkeypatch, 1 << 19)
    monkeypatch.setattr(prefill_convert, "scalar", lambda x: ptx.constant(x))
    tiles = RawTiles(head_dim, bits, tile, 3)
    values, pairs, meant = stored_tokens(tile, head_dim, bits, 1)
    ring = np.zeros((3, tiles.stage_bytes), np.uint8)
    ring[1] = np.concatenate([values.reshape(-1), pairs.view(np.uint8).reshape(-1)])
    raw, smem = threads.put(ring), threads.put(np.full((2, 128, head_dim), -1, np.float16))
    convert_raw(raw, smem, tiles, 1, 1, 128 - tile)
    out = threads.get(smem, np.float16)
    assert (out[0] == -1).all(), "the other slot is left alone"
    got = unswizzled(out[1], 128, head_dim)
    assert (got[: 128 - tile] == -1).all(), "so are the other rows"
    # One rounding to float16.
    assert np.array_equal(got[128 - tile :], meant.astype(np.float16))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_converting_threads_come_to_different_banks(monkeypatch, bits, head_dim):
    """Shared memory serves 128 bytes at a time: of 16 bytes each, eight threads must differ in these bits of their addresses."""
    Threads(monkeypatch, 1024)
    thread = ptx.thread_index()
    for _, piece, targets in _pieces(
        RawTiles(head_dim, bits, 64, 2), ptx.constant(0), ptx.constant(1 << 20), ptx.constant(64), thread
    ):
        for address in (piece, *targets):
            columns = (np.asarray(address.value) % 128 // 16).reshape(-1, 8)
            assert all(len(set(eight)) == 8 for eight in columns)


@pytest.mark.parametrize("width", [96, 128, 256])
def test_rows_are_loaded_and_stored_as_the_tensor_cores_lay_them_out(monkeypatch, width):
    threads = Threads(monkeypatch, 1 << 20)
    monkeypatch.setattr(swizzled, "scalar", lambda x: ptx.constant(x))
    monkeypatch.setattr(swizzled.plgpu, "commit_smem", lambda: None)
    x = np.random.default_rng(0).normal(size=(150, 3, width)).astype(np.float16)
    q, smem, out = threads.put(x), threads.put(np.zeros((2, 64, width), np.float16)), threads.put(np.zeros_like(x))
    swizzled.load_rows(q, smem, 1, 85, 130, 2)
    got = unswizzled(threads.get(smem, np.float16)[1], 64, width)
    assert np.array_equal(got[:45], x[85:130, 2])
    assert not got[45:].any()
    swizzled.store_rows(smem, out, 1, 85, 130, 2)
    expected = np.zeros_like(x)
    expected[85:130, 2] = x[85:130, 2]
    assert np.array_equal(threads.get(out, np.float16), expected)
    swizzled.clear_rows(smem, 1, 7)
    cleared = unswizzled(threads.get(smem, np.float16)[1], 64, width)
    assert np.array_equal(cleared[:7], x[85:92, 2])
    assert not cleared[7:].any()


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize(
    ("group", "head_dim", "soft_cap"),
    [(4, 128, 0.0), (3, 64, 0.0), (1, 128, 0.0), (16, 64, 0.0), (7, 128, 2.0), (2, 96, 0.0), (2, 256, 0.0)],
)
def test_decode_of_one_chunk(monkeypatch, bits, group, head_dim, soft_cap):
    tokens, first, length = 192, 5, 150  # what the query sees: [5, 150)
    keys, values = (stored_tokens(tokens, head_dim, bits, seed) for seed in (1, 2))
    queries = np.asarray(jax.random.normal(jax.random.key(3), (group, head_dim)).astype(jnp.bfloat16))
    threads = Threads(monkeypatch, 1 << 20)
    if bits == 16:
        values[0][150:] = np.nan  # what an earlier owner left
    shape = Shape(
        batch=1, heads=group, kv_heads=1, pages=1, page_size=64, table_width=1, stored=Stored(head_dim, bits),
        query_dtype="bf16", scale=SCALE, soft_cap=soft_cap,
    )  # fmt: skip
    pools = [threads.put(x) for x in (keys[0], values[0], keys[1], values[1])]
    sizes = [*shape.kinds, 0, 0][:4]
    thread = ptx.thread_index()
    code = DecodeWarp(shape, thread % 32)
    code.load_queries(ptx.shared_address(threads.put(queries)), group)
    state = code.start()
    warp = thread // 32
    for tile in range(0, tokens, 64):
        places = [ptx.shared_address(p) + tile * size for p, size in zip(pools, sizes, strict=True)]
        used = places if bits != 16 else places[:2]
        state = code.add(state, used, [warp * 16], ptx.constant(tile) - first, ptx.constant(length - first))
    floats = partial(np.zeros, dtype=np.float32)
    stats, joined = threads.put(floats((4, 16, 4))), threads.put(floats((4, group, code.head_floats(head_dim))))
    out, sums = threads.put(floats((group + 2, head_dim))), threads.put(floats((group + 2, 2)))
    addresses = ptx.shared_address(stats), ptx.shared_address(joined)
    targets = Targets(partials=Partials(ptx.global_address(out), ptx.global_address(sums)))
    code.join(
        state,
        *addresses,
        warp,
        ptx.constant(1),
        UnitResult(shape, Split(64, 192, 1), targets, ptx.constant(2), ptx.constant(2), ptx.constant(0)),
        group,
    )

    scores = queries.astype(np.float64) @ keys[2][first:length].T * SCALE
    if soft_cap:
        scores = soft_cap * np.tanh(scores / soft_cap)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    expected = weights / weights.sum(axis=1, keepdims=True) @ values[2][first:length]
    got = threads.get(out, np.float32)[2:] / threads.get(sums, np.float32)[2:, 1:]
    # Weights are rounded to the operand's 16 bits; from 4 bits, sums of products and of offsets nearly cancel.
    assert np.linalg.norm(got - expected) < {16: 3e-3, 8: 1e-3, 4: 2e-3}[bits] * np.linalg.norm(expected)
    assert not threads.get(out, np.float32)[:2].any(), "other rows are left alone"


def test_the_emulator_notices_a_wrong_address(monkeypatch):
    Threads(monkeypatch, 4096)
    ref = Ref(address=2, shape=())
    with pytest.raises(AssertionError, match="multiple of 4"):
        ptx.load_shared(ptx.shared_address(ref))
