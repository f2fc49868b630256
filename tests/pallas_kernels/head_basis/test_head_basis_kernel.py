"""The kernel of the heads' change of basis: its threads by the emulator, its program lowered for CUDA."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.thread_emulator import Threads

from pallas_kernels import ptx
from pallas_kernels.head_basis import mosaic
from pallas_kernels.head_basis.api import MOST_TOKENS, rope_change_basis, turn_heads
from pallas_kernels.head_basis.reference import turn_heads_reference
from pallas_kernels.head_basis.tiles import Group, Shape

LAYERS, LAYER = 3, 2
DTYPES = [jnp.bfloat16, jnp.float16]


def normal(seed: int, *shape: int, dtype) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)


def signs(size: int, dtype) -> jax.Array:
    return jnp.sign(normal(9, size, size, dtype=dtype))


def arrays(tokens: int, heads: int, kv_heads: int, size: int, dtype) -> list[jax.Array]:
    """Of ``rope_change_basis``, without the matrix of values."""
    angles = 3 * normal(1, tokens, size // 2, dtype=jnp.float32)
    bases = [normal(seed, LAYERS, kv_heads, size, size, dtype=dtype) / size**0.5 for seed in (2, 3)]
    qkv = normal(0, tokens, heads + 2 * kv_heads, size, dtype=dtype)
    return [qkv, jnp.cos(angles), jnp.sin(angles), *(b.astype(dtype) for b in bases), jnp.int32(LAYER)]


def emulate(monkeypatch, shape: Shape, inputs: list, dtype) -> list[np.ndarray]:
    """What the kernel's threads store for each group."""
    threads = Threads(monkeypatch, 1 << 22)
    given = [threads.put(np.atleast_1d(np.asarray(a))) for a in inputs]
    empty = [np.full((shape.tokens, g.width, shape.head_dim), np.nan, dtype) for g in shape.groups]
    outputs = [threads.put(a) for a in empty]
    before = threads.memory.copy()
    for block in range(shape.blocks):
        monkeypatch.setattr(ptx, "block_index", lambda block=block: ptx.constant(block))
        mosaic.emit_warp(shape, [ptx.global_address(ref) for ref in (*given, *outputs)])
    outside = np.ones(threads.memory.shape, bool)
    for ref, array in zip(outputs, empty, strict=True):
        outside[ref.address : ref.address + array.nbytes] = False
    assert np.array_equal(threads.memory[outside], before[outside]), "nothing but the outputs is written"
    return [threads.get(ref, dtype) for ref in outputs]


def rounded(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """RoPE in IEEE float32, rounded: XLA may fuse a product and a sum."""
    first, second = np.split(x.astype(np.float32), 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def exact(arguments: list, values: jax.Array | None, divisor: float) -> list[np.ndarray]:
    """Queries, keys and values in float64, from RoPE's rounded result."""
    qkv, cos, sin, for_queries, for_keys = (np.asarray(a) for a in arguments[:5])
    kv_heads = for_keys.shape[1]
    q, k, v = np.split(qkv, (qkv.shape[1] - 2 * kv_heads, qkv.shape[1] - kv_heads), axis=1)
    bases = [np.asarray(b[LAYER], np.float64) for b in (for_queries, for_keys)]
    q, k = (rounded(x, cos, sin).astype(np.float64) for x in (q, k))
    q = np.einsum("tkgh,khi->tkgi", q.reshape(len(q), kv_heads, -1, q.shape[-1]), bases[0]).reshape(q.shape)
    k = np.einsum("tkh,khi->tki", k, bases[1])
    v = v.astype(np.float64)
    return [q, k, v if values is None else v @ np.asarray(values, np.float64) / divisor]


def check_rounded_once(found: np.ndarray, expected: np.ndarray) -> None:
    """Sums in float32 are off by far less than what rounding to 16 bits takes."""
    step = float(jnp.finfo(found.dtype).eps)
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=0.52 * step, atol=2e-5)


CASES = [(1, 8, 2, 128), (1, 32, 8, 128), (3, 4, 2, 64), (5, 6, 3, 128), (17, 3, 1, 64), (2, 7, 1, 128)]
"""Tokens, heads, KV heads, head_dim."""


@pytest.mark.parametrize("turns_values", [True, False], ids=["turned", "as they are"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_queries_keys_and_values(monkeypatch, case, dtype, turns_values):
    tokens, heads, kv_heads, size = case
    arguments, values = arrays(*case, dtype), signs(size, dtype) if turns_values else None
    groups = Group(kv_heads, heads // kv_heads), Group(kv_heads, 1), Group(1, kv_heads)
    shape = Shape(tokens, groups, size, ptx.SHORT_NAMES[jnp.dtype(dtype).name], 11.5, turns_values)
    inputs = [*arguments[:3], LAYER, *arguments[3:5], *([values] if turns_values else [])]
    inputs[3] = np.array([LAYER], np.int32)
    q, k, v = emulate(monkeypatch, shape, inputs, arguments[0].dtype)
    expected = exact(arguments, values, 11.5)
    check_rounded_once(q, expected[0])
    check_rounded_once(k, expected[1])
    if turns_values:
        check_rounded_once(v, expected[2])
    else:
        assert np.array_equal(v.astype(np.float64), expected[2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "heads", "size"), [(1, 32, 128), (3, 5, 64), (40, 13, 128)])
def test_all_heads_by_one_matrix(monkeypatch, tokens, heads, size, dtype):
    x, matrix = normal(0, tokens, heads, size, dtype=dtype), signs(size, dtype)
    shape = Shape(tokens, (Group(1, heads),), size, ptx.SHORT_NAMES[jnp.dtype(dtype).name], size**0.5)
    [found] = emulate(monkeypatch, shape, [x, matrix], x.dtype)
    check_rounded_once(found, np.asarray(x, np.float64) @ np.asarray(matrix, np.float64) / size**0.5)


def test_tiles_are_wider_where_one_wave_of_blocks_does_not_hold_them():
    def llama(tokens: int) -> Shape:
        return Shape(tokens, (Group(8, 4), Group(8, 1), Group(1, 8)), 128, "bf16", 1.0)

    assert (llama(1).columns, llama(1).blocks) == (8, 17)
    assert (llama(16).columns, llama(16).blocks) == (8, 96)
    assert (llama(64).columns, llama(64).blocks) == (16, 192)


struct = jax.ShapeDtypeStruct


def described(tokens: int, heads: int, kv_heads: int, size: int, dtype) -> list:
    base, angles = struct((LAYERS, kv_heads, size, size), dtype), struct((tokens, size // 2), jnp.float32)
    layer, matrix = struct((), jnp.int32), struct((size, size), dtype)
    return [struct((tokens, heads + 2 * kv_heads, size), dtype), angles, angles, base, base, layer, matrix]


def lowered(function, *arguments) -> str:
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [(1, 32, 8, 128), (64, 32, 8, 128), (300, 14, 2, 64), (512, 64, 8, 128)], ids=str)
def test_lowers_for_cuda(case, dtype):
    arguments = described(*case, dtype)
    run = partial(rope_change_basis, divisor=8.0, implementation="mosaic")
    assert lowered(run, *arguments).count("@mosaic_gpu_v2") == 1
    assert lowered(lambda *a: run(*a, None), *arguments[:-1]).count("@mosaic_gpu_v2") == 1
    back = partial(turn_heads, divisor=8.0, implementation="mosaic")
    assert lowered(back, arguments[0], arguments[-1]).count("@mosaic_gpu_v2") == 1


@pytest.mark.parametrize(
    ("tokens", "size", "dtype", "kernels"),
    [(1, 128, jnp.bfloat16, 1), (MOST_TOKENS, 64, jnp.float16, 1), (MOST_TOKENS + 1, 128, jnp.bfloat16, 0),
     (1, 128, jnp.float32, 0), (1, 96, jnp.bfloat16, 0)],
)  # fmt: skip
def test_default_takes_the_kernel_for_decode(tokens, size, dtype, kernels):
    arguments = described(tokens, 4, 2, size, dtype)
    assert lowered(rope_change_basis, *arguments).count("@mosaic_gpu_v2") == kernels
    assert lowered(turn_heads, arguments[0], arguments[-1]).count("@mosaic_gpu_v2") == kernels


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [*CASES, (64, 32, 8, 128), (512, 14, 2, 64)], ids=str)
def test_on_a_gpu_it_stores_what_it_should(case, dtype):
    arguments, size = arrays(*case, dtype), case[-1]
    values, divisor = signs(size, dtype), size**0.5
    run = jax.jit(partial(rope_change_basis, divisor=divisor, implementation="mosaic"))
    step = float(jnp.finfo(dtype).eps)
    for matrix in (values, None):
        found = [np.asarray(a, np.float64) for a in run(*arguments, matrix)]
        for part, expected in zip(found, exact(arguments, matrix, divisor), strict=True):
            # RoPE with one rounding instead of two can round to a neighbour: one of 128 terms is then off by a step.
            np.testing.assert_allclose(part, expected, rtol=0.52 * step, atol=2 * step)
    back = jax.jit(partial(turn_heads, divisor=divisor, implementation="mosaic"))(arguments[0], values)
    exactly = np.asarray(
        turn_heads_reference(arguments[0].astype(jnp.float32), values.astype(jnp.float32), divisor=divisor)
    )
    np.testing.assert_allclose(np.asarray(back, np.float32), exactly, rtol=0.52 * step, atol=2e-3)
