from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.kv_write.api import kv_write
from pallas_kernels.kv_write.reference import dequantize_heads, quantize_heads

LAYERS, PAGES, HEADS, PAGE, H = 2, 5, 3, 4, 16

quantize = jax.jit(quantize_heads, static_argnames="bits")
dequantize = jax.jit(dequantize_heads, static_argnames="bits")


def empty_pool(bits: int, dtype: str = "float32"):
    """A pool filled with 7s, so that a write to a wrong place shows."""
    lead = (LAYERS, PAGES, HEADS, PAGE)
    if bits == 16:
        return jnp.full((*lead, H), 7, dtype), None
    return jnp.full((*lead, H * bits // 8), 7, jnp.uint8), jnp.full((*lead, 2), 7, jnp.float16)


def heads(kind: str) -> np.ndarray:
    """Tokens [32, HEADS, H] of several magnitudes."""
    x = np.random.default_rng(0).standard_normal((32, HEADS, H))
    match kind:
        case "normal":
            pass
        case "tiny":  # the scale is subnormal in float16
            x = x * 1e-4
        case "huge":
            x = x * 1e4
        case "far":  # all values far from 0: the offset's rounding is larger than a step
            x = x * 0.01 + 300
        case "outlier":  # what Qwen's keys look like
            x[..., 3] = 80
    return x.astype(np.float32)


KINDS = ["normal", "tiny", "huge", "far", "outlier"]


@pytest.mark.parametrize("kind", KINDS)
def test_error_is_at_most_half_a_step(kind):
    bits, x = 8, heads(kind)
    q, pair = quantize(x, bits=bits)
    assert q.dtype == jnp.uint8
    assert q.shape == (*x.shape[:2], H * bits // 8)
    assert pair.dtype == jnp.float16
    scale, offset = np.asarray(pair, np.float64)[..., 0], np.asarray(pair, np.float64)[..., 1]
    low, high = x.min(-1).astype(np.float64), x.max(-1).astype(np.float64)
    # The pair is (max - min) / (2^bits - 1) and min but for the rounding of float16, 2^-10 of a value or 2^-24.
    ulp_low = np.maximum(np.abs(low) * 2.0**-10, 2.0**-24)
    step = (high - low + ulp_low) / (2**bits - 1)
    assert np.all((low - ulp_low <= offset) & (offset <= low))
    assert np.all((scale >= (high - low) / (2**bits - 1) * (1 - 1e-6)) & (scale <= step * (1 + 2.0**-10) + 2.0**-24))
    restored = np.asarray(dequantize(q, pair, bits=bits), np.float64)
    float32_rounding = np.abs(x).max(-1, keepdims=True) * 2.0**-22
    assert np.all(np.abs(restored - x) <= scale[..., None] / 2 + float32_rounding)


@pytest.mark.parametrize("kind", KINDS)
def test_int4_is_nearer_than_the_range_of_each_head_allows(kind):
    """Against LMDeploy's formula with the range's ends in float16, by squared error of each head."""
    x = heads(kind)
    restored = np.asarray(dequantize(*quantize(x, bits=4), bits=4), np.float64)
    low = x.min(-1, keepdims=True).astype(np.float16)
    low = np.where(low > x.min(-1, keepdims=True), np.nextafter(low, np.float16(-np.inf)), low).astype(np.float64)
    step = (x.max(-1, keepdims=True) - low) / 15
    stored = step.astype(np.float16)
    stored = np.where(stored < step, np.nextafter(stored, np.float16(np.inf)), stored).astype(np.float64)
    plain = np.clip(np.round((x - low) / stored), 0, 15) * stored + low
    ours, theirs = (np.square(found - x).sum(-1) for found in (restored, plain))
    assert np.all(ours <= theirs * 1.01 + 1e-12), "but for float32 rounding"
    if kind in ("normal", "huge"):
        assert ours.sum() < 0.93 * theirs.sum()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("value", [0.0, 1.5, -300.0, 2.0**-24, 65504.0])
def test_head_of_equal_values_is_exact(bits, value):
    x = heads("normal")
    x[4, 1] = value
    q, pair = quantize(x, bits=bits)
    np.testing.assert_array_equal(pair[4, 1], [0, value])
    np.testing.assert_array_equal(dequantize(q, pair, bits=bits)[4, 1], np.full(H, value, np.float32))


@pytest.mark.parametrize("bits", [8, 4])
def test_values_beyond_float16_are_clipped_not_infinite(bits):
    x = heads("normal")
    x[0, 0, 0], x[1, 1, 1], x[2, 2, 2] = 1e30, -1e30, np.inf
    restored = np.asarray(dequantize(*quantize(x, bits=bits), bits=bits))
    assert np.all(np.isfinite(restored))
    assert restored[0, 0, 0] > 9e5
    assert restored[1, 1, 1] == -65504


def test_int4_puts_the_even_value_in_the_low_nibble():
    x = np.broadcast_to(np.arange(H, dtype=np.float32), (1, 1, H))
    q, pair = quantize(x, bits=4)
    np.testing.assert_array_equal(pair[0, 0], [1, 0])
    np.testing.assert_array_equal(q[0, 0], [2 * j + 16 * (2 * j + 1) for j in range(H // 2)])


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_writes_its_tokens_and_nothing_else(bits):
    pages, pairs = empty_pool(bits)
    before, before_pairs = np.asarray(pages).copy(), None if pairs is None else np.asarray(pairs).copy()
    new = heads("normal")[:6]
    # Two pages out of order, the last offset of a page, and two rows of padding (page id = number of pages).
    page_ids, offsets = np.array([3, 3, 0, PAGES, 4, PAGES], np.int32), np.array([2, 3, 0, 0, 1, 3], np.int32)
    write = jax.jit(partial(kv_write, bits=bits), donate_argnums=(0, 1))
    after, after_pairs = write(pages, pairs, new, jnp.int32(1), page_ids, offsets)
    stored, stored_pairs = (new, None) if bits == 16 else quantize(new, bits=bits)
    for token in (0, 1, 2, 4):
        before[1, page_ids[token], :, offsets[token]] = stored[token]
        if before_pairs is not None and stored_pairs is not None:
            before_pairs[1, page_ids[token], :, offsets[token]] = stored_pairs[token]
    np.testing.assert_array_equal(after, before)
    if before_pairs is None:
        assert after_pairs is None
    else:
        np.testing.assert_array_equal(after_pairs, before_pairs)


@pytest.mark.parametrize(("bits", "dtype"), [(16, "float32"), (16, "bfloat16"), (8, "float32"), (4, "float32")])
def test_donated_pool_is_written_in_place(bits, dtype):
    lead = (LAYERS, 256, HEADS, 64)
    pool = jax.ShapeDtypeStruct((*lead, H * min(bits, 8) // 8), dtype if bits == 16 else jnp.uint8)
    pairs = None if bits == 16 else jax.ShapeDtypeStruct((*lead, 2), jnp.float16)
    new, place = jax.ShapeDtypeStruct((4, HEADS, H), dtype), jax.ShapeDtypeStruct((4,), jnp.int32)
    layer = jax.ShapeDtypeStruct((), jnp.int32)
    write = jax.jit(partial(kv_write, bits=bits), donate_argnums=(0, 1))
    memory = write.lower(pool, pairs, new, layer, place, place).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= pool.size * pool.dtype.itemsize
    assert memory.temp_size_in_bytes < 2**14


def test_pool_of_16_bits_keeps_its_dtype():
    pages, _ = empty_pool(16, "bfloat16")
    new, place = jnp.full((1, HEADS, H), 1 / 3, jnp.float32), jnp.zeros(1, jnp.int32)
    after, _ = kv_write(pages, None, new, jnp.int32(0), place, place, bits=16)
    assert after.dtype == jnp.bfloat16
    assert after[0, 0, 0, 0, 0] == jnp.bfloat16(1 / 3)


@pytest.mark.parametrize(
    ("pool_bits", "bits", "with_pairs", "message"),
    [
        (16, 2, True, r"bits=2 must be one of \(16, 8, 4\)"),
        (8, 4, True, r"head_dim 16 at bits=4 takes 8 values a head, the pool has 16"),
        (4, 8, True, r"head_dim 16 at bits=8 takes 16 values a head, the pool has 8"),
        (8, 8, False, r"bits=8 needs the pool of \(scale, offset\) pairs"),
    ],
)
def test_errors_name_the_values(pool_bits, bits, with_pairs, message):
    pages, pairs = empty_pool(pool_bits)
    place = jnp.zeros(1, jnp.int32)
    with pytest.raises(ValueError, match=message):
        kv_write(pages, pairs if with_pairs else None, jnp.zeros((1, HEADS, H)), jnp.int32(0), place, place, bits=bits)
