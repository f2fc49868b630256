from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.kv_write.api import kv_write, rope_kv_write
from pallas_kernels.kv_write.reference import Pools, apply_rotation, dequantize_heads, quantize_heads

LAYERS, PAGES, HEADS, PAGE, H = 2, 5, 3, 4, 16

quantize = jax.jit(quantize_heads, static_argnames="bits")
dequantize = jax.jit(dequantize_heads, static_argnames="bits")


def empty_pools(bits: int, dtype: str = "float32") -> Pools:
    """Pools filled with 7s and 9s, so that a write to a wrong place shows."""
    lead = (LAYERS, PAGES, HEADS, PAGE)
    if bits == 16:
        return Pools(jnp.full((*lead, H), 7, dtype), jnp.full((*lead, H), 9, dtype))
    k, v = (jnp.full((*lead, H * bits // 8), fill, jnp.uint8) for fill in (7, 9))
    return Pools(k, v, *(jnp.full((*lead, 2), fill, jnp.float16) for fill in (7, 9)))


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


# Two pages out of order, the last offset of a page, and two rows of padding (page id = number of pages).
PAGE_IDS, OFFSETS = np.array([3, 3, 0, PAGES, 4, PAGES], np.int32), np.array([2, 3, 0, 0, 1, 3], np.int32)


def written(pools: Pools, k, v, bits: int) -> Pools:
    """``pools`` with the tokens of PAGE_IDS in layer 1, by loops in numpy."""
    result = jax.tree.map(lambda pool: np.array(pool), pools)
    for new, values, pairs in ((k, result.k, result.k_pairs), (v, result.v, result.v_pairs)):
        stored, stored_pairs = (np.asarray(new), None) if bits == 16 else quantize(new, bits=bits)
        for token in (0, 1, 2, 4):
            values[1, PAGE_IDS[token], :, OFFSETS[token]] = stored[token]
            if stored_pairs is not None:
                pairs[1, PAGE_IDS[token], :, OFFSETS[token]] = stored_pairs[token]
    return result


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_writes_its_tokens_and_nothing_else(bits):
    pools, k, v = empty_pools(bits), heads("normal")[:6], heads("outlier")[6:12]
    expected = written(pools, k, v, bits)
    write = jax.jit(partial(kv_write, bits=bits), donate_argnums=0)
    after = write(pools, k, v, jnp.int32(1), PAGE_IDS, OFFSETS)
    jax.tree.map(np.testing.assert_array_equal, after, expected)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_with_rope_it_turns_queries_and_keys_and_not_values(bits):
    pools, qkv = empty_pools(bits), np.concatenate([heads("normal")[i : i + 6] for i in range(0, 24, 6)], axis=1)
    angles = np.random.default_rng(1).uniform(-3, 3, (6, H // 2)).astype(np.float32)
    cos, sin = np.cos(angles), np.sin(angles)
    turn = jax.jit(apply_rotation)
    q, k, v = turn(qkv[:, : -2 * HEADS], cos, sin), turn(qkv[:, -2 * HEADS : -HEADS], cos, sin), qkv[:, -HEADS:]
    expected = written(pools, k, v, bits)
    write = jax.jit(partial(rope_kv_write, bits=bits), donate_argnums=0)
    queries, after = write(pools, qkv, cos, sin, jnp.int32(1), PAGE_IDS, OFFSETS)
    assert queries.shape == (6, 2 * HEADS, H)
    np.testing.assert_array_equal(queries, q)
    jax.tree.map(np.testing.assert_array_equal, after, expected)


@pytest.mark.parametrize(("bits", "dtype"), [(16, "float32"), (16, "bfloat16"), (8, "float32"), (4, "float32")])
def test_donated_pools_are_written_in_place(bits, dtype):
    lead, struct = (LAYERS, 256, HEADS, 64), jax.ShapeDtypeStruct
    pool = struct((*lead, H * min(bits, 8) // 8), dtype if bits == 16 else jnp.uint8)
    pairs = None if bits == 16 else struct((*lead, 2), jnp.float16)
    new, place = struct((4, HEADS, H), dtype), struct((4,), jnp.int32)
    write = jax.jit(partial(kv_write, bits=bits), donate_argnums=0)
    lowered = write.lower(Pools(pool, pool, pairs, pairs), new, new, struct((), jnp.int32), place, place)
    memory = lowered.compile().memory_analysis()
    assert memory.alias_size_in_bytes >= 2 * pool.size * pool.dtype.itemsize
    assert memory.temp_size_in_bytes < 2**14


def test_pool_of_16_bits_keeps_its_dtype():
    new, place = jnp.full((1, HEADS, H), 1 / 3, jnp.float32), jnp.zeros(1, jnp.int32)
    after = kv_write(empty_pools(16, "bfloat16"), new, -new, 0, place, place, bits=16)
    assert after.k.dtype == after.v.dtype == jnp.bfloat16
    assert after.k[0, 0, 0, 0, 0] == -after.v[0, 0, 0, 0, 0] == jnp.bfloat16(1 / 3)


@pytest.mark.parametrize(
    ("pool_bits", "bits", "changes", "message"),
    [
        (16, 2, {}, r"bits=2 must be one of \(16, 8, 4\)"),
        (8, 4, {}, r"head_dim 16 at bits=4 takes 8 values a head, the pool has 16"),
        (4, 8, {}, r"head_dim 16 at bits=8 takes 16 values a head, the pool has 8"),
        (8, 8, {"v_pairs": None}, r"bits=8 needs the pools of \(scale, offset\) pairs"),
        (16, 16, {"k_pairs": jnp.zeros(())}, "bits=16 stores no"),
        (16, 16, {"v": jnp.zeros((1, 1, 1, 1, 1))}, r"K and V pools differ: \(2, 5, 3, 4, 16\) and \(1, 1, 1, 1, 1\)"),
    ],
)
def test_errors_name_the_values(pool_bits, bits, changes, message):
    pools, place, new = empty_pools(pool_bits)._replace(**changes), jnp.zeros(1, jnp.int32), jnp.zeros((1, HEADS, H))
    with pytest.raises(ValueError, match=message):
        kv_write(pools, new, new, 0, place, place, bits=bits)


def test_errors_of_new_heads_name_the_values():
    pools, place, new = empty_pools(16), jnp.zeros(1, jnp.int32), jnp.zeros((1, HEADS, H))
    angles = jnp.zeros((1, H // 2))
    with pytest.raises(ValueError, match=r"new keys and values differ: float32\(1, 3, 16\) and bfloat16"):
        kv_write(pools, new, new.astype("bfloat16"), 0, place, place, bits=16)
    with pytest.raises(ValueError, match="2 new KV heads for pools of 3"):
        kv_write(pools, new[:, 1:], new[:, 1:], 0, place, place, bits=16)
    with pytest.raises(ValueError, match="6 heads of q, k and v leave no queries beside pools of 3 KV heads"):
        rope_kv_write(pools, jnp.zeros((1, 6, H)), angles, angles, 0, place, place, bits=16)
    with pytest.raises(ValueError, match=r"cos and sin of float32\(1, 4\) must be float32 of half of head_dim 16"):
        rope_kv_write(pools, jnp.zeros((1, 7, H)), angles[:, :4], angles[:, :4], 0, place, place, bits=16)
    with pytest.raises(ValueError, match="implementation='cuda' is unknown"):
        kv_write(pools, new, new, 0, place, place, bits=16, implementation="cuda")
