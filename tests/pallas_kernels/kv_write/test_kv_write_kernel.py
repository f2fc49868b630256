"""The kernel of the KV write: its threads by the emulator, its program lowered for CUDA."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.thread_emulator import Threads

from pallas_kernels import ptx
from pallas_kernels.kv_write import mosaic
from pallas_kernels.kv_write.api import kv_write
from pallas_kernels.kv_write.reference import dequantize_heads, quantize_heads

LAYERS, LAYER, PAGES, HEADS, PAGE = 2, 1, 5, 3, 16
PAGE_IDS = np.array([3, 3, 0, PAGES, 4, 1, PAGES], np.int32)
OFFSETS = np.array([2, 15, 0, 0, 1, 7, 3], np.int32)


def new_tokens(kind: str, head_dim: int, dtype) -> jax.Array:
    x = jax.random.normal(jax.random.key(head_dim), (len(PAGE_IDS), HEADS, head_dim), jnp.float32)
    if kind == "outliers":
        x = x.at[..., 5].mul(200.0)
    if kind == "tiny":
        x = x * 1e-6
    if kind == "constant":
        x = jnp.full_like(x, 0.3)
    return x.astype(dtype)


def directed(x: np.ndarray, towards: float) -> np.ndarray:
    half = x.astype(np.float16)
    wrong = half.astype(np.float32) > x if towards < 0 else half.astype(np.float32) < x
    return np.where(wrong, np.nextafter(half, np.float16(towards)), half)


def quantize(new: jax.Array, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """What the docstring of ``quantize_heads`` says, by IEEE float32: XLA may multiply by a reciprocal where that divides."""
    x, top = np.asarray(new.astype(jnp.float32)), np.float32(2**bits - 1)
    offset = directed(x.min(axis=-1, keepdims=True), -np.inf)
    scale = directed((x.max(axis=-1, keepdims=True) - offset.astype(np.float32)) / top, np.inf)
    q = np.clip(np.rint((x - offset.astype(np.float32)) / np.where(scale == 0, 1, scale).astype(np.float32)), 0, top)
    q = q.astype(np.uint8)
    pair = np.concatenate([scale, offset], axis=-1)
    return (q, pair) if bits == 8 else (q[..., 0::2] | q[..., 1::2] << 4, pair)


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize(
    ("kind", "head_dim", "dtype"),
    [("normal", 128, "bfloat16"), ("normal", 64, "float16"), ("outliers", 96, "bfloat16"), ("tiny", 128, "float16"),
     ("constant", 64, "bfloat16"), ("normal", 256, "bfloat16")],
)  # fmt: skip
def test_stores_what_the_reference_stores(monkeypatch, bits, kind, head_dim, dtype):
    rng = np.random.default_rng(0)
    new = new_tokens(kind, head_dim, dtype)
    lead = (LAYERS, PAGES, HEADS, PAGE)
    if bits == 16:
        pages, pairs = np.asarray(jnp.asarray(rng.normal(size=(*lead, head_dim)), dtype)), None
    else:
        pages = rng.integers(0, 256, (*lead, head_dim * bits // 8), np.uint8)
        pairs = rng.normal(size=(*lead, 2)).astype(np.float16)
    kept = [t for t, page in enumerate(PAGE_IDS) if page < PAGES]
    places = LAYER, PAGE_IDS[kept], slice(None), OFFSETS[kept]
    stored, stored_pairs = (np.asarray(new), None) if bits == 16 else quantize(new, bits)
    expected = pages.copy()
    expected[places] = stored[kept]

    threads = Threads(monkeypatch, 1 << 20)
    pools = [threads.put(p) for p in (pages, pairs) if p is not None]
    inputs = [threads.put(np.asarray(a)) for a in (new, np.array([LAYER], np.int32), PAGE_IDS, OFFSETS)]
    for block in range(-(-new.shape[0] * HEADS // 4)):
        monkeypatch.setattr(ptx, "block_index", lambda block=block: ptx.constant(block))
        addresses = [ptx.global_address(ref) for ref in (*inputs, *pools)]
        mosaic.emit_warp(new.shape, {"bfloat16": "bf16", "float16": "f16"}[dtype], pages.shape, bits, addresses)
    got = threads.get(pools[0], pages.dtype)
    assert np.array_equal(got, expected)
    if bits == 16:
        return
    got_pairs, others = threads.get(pools[1], np.float16), np.ones(lead, bool)
    others[places] = False
    assert np.array_equal(got_pairs[others], pairs[others])
    if bits == 8:
        assert np.array_equal(got_pairs[places], stored_pairs[kept])
        return
    x = np.asarray(new.astype(jnp.float32))[kept]

    def distance(pair):
        restored = dequantize_heads(jnp.asarray(got[places]), jnp.asarray(pair), bits=4)
        return np.square(np.asarray(restored) - x).sum(axis=-1)

    # The line of least squares, as good as the reference's (whose sums are in another order), no worse than the range's ends.
    fitted = np.asarray(quantize_heads(new, bits=4)[1])[kept]
    np.testing.assert_array_less(distance(got_pairs[places]), 1.01 * distance(fitted) + 1e-12)
    np.testing.assert_array_less(distance(got_pairs[places]), 1.0001 * distance(stored_pairs[kept]) + 1e-12)


@pytest.mark.parametrize("tokens", [1, 300])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_lowers_for_cuda_and_writes_in_place(bits, tokens):
    struct = jax.ShapeDtypeStruct
    lead = (32, 512, 8, 64)
    pages = struct((*lead, 128 * min(bits, 8) // 8), jnp.bfloat16 if bits == 16 else jnp.uint8)
    pairs = None if bits == 16 else struct((*lead, 2), jnp.float16)
    place = struct((tokens,), jnp.int32)
    write = jax.jit(partial(kv_write, bits=bits, implementation="mosaic"), donate_argnums=(0, 1))
    new = struct((tokens, 8, 128), jnp.bfloat16)
    text = (
        write.trace(pages, pairs, new, struct((), jnp.int32), place, place)
        .lower(lowering_platforms=("cuda",))
        .as_text()
    )
    pools = 1 if bits == 16 else 2
    assert text.count("@mosaic_gpu_v2") == 1
    assert text.count("tf.aliasing_output") == pools, "donated pools"
    assert text.count("#stablehlo.output_operand_alias<") == pools, "that the kernel writes into"


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (jnp.zeros((1, HEADS, 20), jnp.bfloat16), "head_dim=20 must be a multiple of 8"),
        (jnp.zeros((1, HEADS, 16), jnp.float32), "new tokens of float32"),
    ],
)
def test_says_what_it_cannot_take(new, message):
    pages = jnp.zeros((LAYERS, PAGES, HEADS, PAGE, new.shape[-1]), new.dtype)
    place = jnp.zeros(1, jnp.int32)
    with pytest.raises(ValueError, match=message):
        kv_write(pages, None, new, jnp.int32(0), place, place, bits=16, implementation="mosaic")


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_on_a_gpu_it_stores_what_the_reference_stores(bits):
    new = jax.random.normal(jax.random.key(0), (200, 8, 128), jnp.bfloat16)
    lead, order = (2, 300, 8, 64), np.random.default_rng(0).permutation(301)[:200].astype(np.int32)
    results = []
    for implementation in ("mosaic", "reference"):
        pages = jnp.zeros((*lead, 128 * min(bits, 8) // 8), jnp.bfloat16 if bits == 16 else jnp.uint8)
        pairs = None if bits == 16 else jnp.zeros((*lead, 2), jnp.float16)
        write = jax.jit(partial(kv_write, bits=bits, implementation=implementation), donate_argnums=(0, 1))
        compiled = write.lower(pages, pairs, new, jnp.int32(1), order, order % 64).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 2**20, "no copy of the pool"
        results.append(compiled(pages, pairs, new, jnp.int32(1), order, order % 64))
    (values, pairs), (expected, expected_pairs) = results
    if bits == 16:
        assert np.array_equal(np.asarray(values), np.asarray(expected))
        return
    # Where a quotient is exact, XLA's scale can be the next float16, and then many integers of that head.
    assert np.mean(np.asarray(values) != np.asarray(expected)) < 0.02
    np.testing.assert_allclose(np.asarray(pairs), np.asarray(expected_pairs), rtol=2e-3, atol=1e-3)
