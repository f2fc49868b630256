"""The kernel of the KV write: its threads by the emulator, its program lowered for CUDA."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.thread_emulator import Threads

from pallas_kernels import ptx
from pallas_kernels.kv_write import mosaic
from pallas_kernels.kv_write.api import kv_write, rope_kv_write
from pallas_kernels.kv_write.reference import Pools, dequantize_heads, quantize_heads

LAYERS, LAYER, PAGES, QUERIES, HEADS, PAGE = 2, 1, 5, 4, 3, 16
PAGE_IDS = np.array([3, 3, 0, PAGES, 4, 1, PAGES, 2], np.int32)
OFFSETS = np.array([2, 15, 0, 0, 1, 7, 3, PAGE], np.int32)
KEPT = [0, 1, 2, 4, 5]  # no page, or no place in it: the others are dropped


def new_tokens(kind: str, heads: int, head_dim: int, dtype) -> jax.Array:
    x = jax.random.normal(jax.random.key(head_dim), (len(PAGE_IDS), heads, head_dim), jnp.float32)
    if kind == "outliers":
        x = x.at[..., 5].mul(200.0)
    if kind == "tiny":
        x = x * 1e-6
    if kind == "constant":
        x = jnp.full_like(x, 0.3)
    return x.astype(dtype)


def turned(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """RoPE as its docstring says, in IEEE float32: XLA may fuse a product and a sum."""
    first, second = np.split(x.astype(np.float32), 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


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


def random_pools(bits: int, head_dim: int, dtype: str) -> Pools:
    rng, lead = np.random.default_rng(0), (LAYERS, PAGES, HEADS, PAGE)
    if bits == 16:
        return Pools(*(np.asarray(jnp.asarray(rng.normal(size=(*lead, head_dim)), dtype)) for _ in range(2)))
    values = (rng.integers(0, 256, (*lead, head_dim * bits // 8), np.uint8) for _ in range(2))
    return Pools(*values, *(rng.normal(size=(*lead, 2)).astype(np.float16) for _ in range(2)))


def run_threads(monkeypatch, shape: mosaic.Shape, inputs: list, pools: Pools, dtype) -> tuple[Pools, np.ndarray]:
    """The pools and the queries that the kernel's code leaves in memory."""
    threads = Threads(monkeypatch, 1 << 21)
    places = [np.array([LAYER], np.int32), PAGE_IDS, OFFSETS]
    before = [threads.put(np.asarray(array)) for array in (*inputs, *places)]
    refs = [threads.put(np.asarray(pool)) for pool in jax.tree.leaves(pools)]
    queries = threads.put(np.zeros((shape.tokens, shape.heads, shape.head_dim), dtype))
    for block in range(-(-shape.warps // 4)):
        monkeypatch.setattr(ptx, "block_index", lambda block=block: ptx.constant(block))
        mosaic.emit_warp(shape, [ptx.global_address(ref) for ref in (*before, *refs, queries)])
    found = [threads.get(ref, pool.dtype) for ref, pool in zip(refs, jax.tree.leaves(pools), strict=True)]
    return Pools(*found), threads.get(queries, dtype)


def check_stored(got, got_pairs, before, pairs_before, new: np.ndarray, bits: int) -> None:
    """One of K and V: what the new heads should be is in their places, and nothing else has changed."""
    places, expected = (LAYER, PAGE_IDS[KEPT], slice(None), OFFSETS[KEPT]), before.copy()
    if bits == 16:
        expected[places] = new[KEPT]
        assert np.array_equal(got, expected)
        return
    stored, stored_pairs = quantize(jnp.asarray(new), bits)
    expected[places] = stored[KEPT]
    assert np.array_equal(got, expected)
    others = np.ones(pairs_before.shape[:-1], bool)
    others[places] = False
    assert np.array_equal(got_pairs[others], pairs_before[others])
    if bits == 8:
        assert np.array_equal(got_pairs[places], stored_pairs[KEPT])
        return

    def distance(pair):
        restored = dequantize_heads(jnp.asarray(got[places]), jnp.asarray(pair), bits=4)
        return np.square(np.asarray(restored) - new[KEPT].astype(np.float32)).sum(axis=-1)

    # The line of least squares, as good as the reference's (whose sums are in another order), no worse than the range's ends.
    fitted = np.asarray(quantize_heads(jnp.asarray(new), bits=4)[1])[KEPT]
    np.testing.assert_array_less(distance(got_pairs[places]), 1.01 * distance(fitted) + 1e-12)
    np.testing.assert_array_less(distance(got_pairs[places]), 1.0001 * distance(stored_pairs[KEPT]) + 1e-12)


@pytest.mark.parametrize("with_rope", [False, True], ids=["stored", "rope"])
@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize(
    ("kind", "head_dim", "dtype"),
    [("normal", 128, "bfloat16"), ("normal", 64, "float16"), ("outliers", 96, "bfloat16"), ("tiny", 128, "float16"),
     ("constant", 64, "bfloat16"), ("normal", 256, "bfloat16")],
)  # fmt: skip
def test_stores_what_the_reference_stores(monkeypatch, bits, kind, head_dim, dtype, with_rope):
    pools, tokens = random_pools(bits, head_dim, dtype), len(PAGE_IDS)
    heads = QUERIES if with_rope else 0
    new = np.asarray(new_tokens(kind, heads + 2 * HEADS, head_dim, dtype))
    shape = mosaic.Shape(tokens, heads, HEADS, head_dim, ptx.SHORT_NAMES[dtype], LAYERS, PAGES, PAGE, bits)
    q, k, v = np.split(new, (heads, heads + HEADS), axis=1)
    inputs = [k, v]
    if with_rope:
        angles = np.random.default_rng(1).uniform(-4, 4, (tokens, head_dim // 2)).astype(np.float32)
        inputs = [new, np.cos(angles), np.sin(angles)]
        q, k = turned(q, *inputs[1:]), turned(k, *inputs[1:])
    after, queries = run_threads(monkeypatch, shape, inputs, pools, new.dtype)
    assert np.array_equal(queries, q)
    check_stored(after.k, after.k_pairs, pools.k, pools.k_pairs, k, bits)
    check_stored(after.v, after.v_pairs, pools.v, pools.v_pairs, v, bits)


struct = jax.ShapeDtypeStruct


def described(bits: int, tokens: int, *, with_rope: bool) -> list:
    """Arguments of a call of Llama-3-8B's heads: pools, new heads, layer, page ids, offsets."""
    lead = (32, 512, 8, 64)
    values = struct((*lead, 128 * min(bits, 8) // 8), jnp.bfloat16 if bits == 16 else jnp.uint8)
    pairs = None if bits == 16 else struct((*lead, 2), jnp.float16)
    new, angles = [struct((tokens, 8, 128), jnp.bfloat16)] * 2, [struct((tokens, 64), jnp.float32)] * 2
    if with_rope:
        new = [struct((tokens, 48, 128), jnp.bfloat16), *angles]
    return [Pools(values, values, pairs, pairs), *new, struct((), jnp.int32), *[struct((tokens,), jnp.int32)] * 2]


def check_in_place(text: str, bits: int) -> None:
    pools = 2 if bits == 16 else 4
    assert text.count("@mosaic_gpu_v2") == 1, "one kernel for K and V"
    assert text.count("tf.aliasing_output") == pools, "donated pools"
    assert text.count("#stablehlo.output_operand_alias<") == pools, "that the kernel writes into"
    assert "stablehlo.scatter" not in text


@pytest.mark.parametrize("with_rope", [False, True], ids=["stored", "rope"])
@pytest.mark.parametrize("tokens", [1, 300])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_default_lowers_to_one_kernel_that_writes_in_place(bits, tokens, with_rope):
    write = jax.jit(partial(rope_kv_write if with_rope else kv_write, bits=bits), donate_argnums=0)
    traced = write.trace(*described(bits, tokens, with_rope=with_rope))
    check_in_place(traced.lower(lowering_platforms=("cuda",)).as_text(), bits)


def test_inside_a_loop_over_layers_it_writes_in_place():
    def layers(pools, qkv, cos, sin, layer, page_ids, offsets):
        def body(pools, layer):
            q, pools = rope_kv_write(pools, qkv, cos, sin, layer, page_ids, offsets, bits=8)
            return pools, q

        return jax.lax.scan(body, pools, jnp.arange(32) + layer)

    traced = jax.jit(layers, donate_argnums=0).trace(*described(8, 3, with_rope=True))
    check_in_place(traced.lower(lowering_platforms=("cuda",)).as_text(), 8)


@pytest.mark.parametrize(
    ("new", "with_rope", "message"),
    [
        (jnp.zeros((1, HEADS, 20), jnp.bfloat16), False, "head_dim=20 must be a multiple of 8"),
        (jnp.zeros((1, 7, 24), jnp.bfloat16), True, "head_dim=24 must be a multiple of 16"),
        (jnp.zeros((1, HEADS, 16), jnp.float32), False, "new tokens of float32"),
    ],
)
def test_says_what_it_cannot_take(new, with_rope, message):
    pages = jnp.zeros((LAYERS, PAGES, HEADS, PAGE, new.shape[-1]), new.dtype)
    rest = jnp.int32(0), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32)
    angles = jnp.zeros((1, new.shape[-1] // 2))
    write = partial(rope_kv_write if with_rope else kv_write, bits=16, implementation="mosaic")
    with pytest.raises(ValueError, match=message):
        write(Pools(pages, pages), new, *((angles, angles) if with_rope else (new,)), *rest)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("with_rope", [False, True], ids=["stored", "rope"])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_on_a_gpu_it_stores_what_the_reference_stores(bits, with_rope):
    tokens = 200
    pools, *arguments = described(bits, tokens, with_rope=with_rope)
    order = np.random.default_rng(0).permutation(513)[:tokens].astype(np.int32)
    new = [jax.random.normal(jax.random.key(i), a.shape).astype(a.dtype) for i, a in enumerate(arguments[:-3])]
    results = []
    # The reference runs on the CPU: for the GPU XLA multiplies by 1 / 255, which moves a tenth of all 8-bit integers by one.
    for implementation, device in (("mosaic", jax.devices()[0]), ("reference", jax.devices("cpu")[0])):
        empty = jax.tree.map(lambda pool: jnp.zeros((2, *pool.shape[1:]), pool.dtype), pools)
        function = partial(rope_kv_write if with_rope else kv_write, bits=bits, implementation=implementation)
        empty, *rest = jax.device_put((empty, *new, jnp.int32(1), order, order % 64), device)
        compiled = jax.jit(function, donate_argnums=0).lower(empty, *rest).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 2**24, "no copy of a pool"
        found = compiled(empty, *rest)
        results.append(found if with_rope else (jnp.zeros(1), found))
    (queries, found), (expected_queries, expected) = results
    # XLA may fuse the product and the sum of RoPE in another way: the next value of 16 bits, now and then.
    as_floats = [np.asarray(x, np.float32) for x in (queries, expected_queries)]
    np.testing.assert_allclose(*as_floats, rtol=2**-7, atol=2**-9)
    assert np.mean(as_floats[0] != as_floats[1]) < 0.02
    kept = order < 512
    places, others = (1, order[kept], slice(None), order[kept] % 64), np.ones((2, 512, 8, 64), bool)
    others[places] = False
    # Where a quotient is exact, XLA's scale can be the next float16, and then many integers of that head.
    for values, expected_values in ((found.k, expected.k), (found.v, expected.v)):
        differs = np.asarray(values) != np.asarray(expected_values)
        assert not differs[others].any()
        assert np.any(np.asarray(values)[places])
        assert np.mean(differs[places]) < 0.02
    for pairs, expected_pairs in ((found.k_pairs, expected.k_pairs), (found.v_pairs, expected.v_pairs)):
        if pairs is not None:
            # A line of least squares through other integers, or one of two about as good, now and then.
            same = np.isclose(np.asarray(pairs), np.asarray(expected_pairs), rtol=1e-2, atol=1e-2)
            assert np.mean(same) > 1 - 1e-4
