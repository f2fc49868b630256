"""The warp kernel's per-thread code, run by an emulator: what a GPU computes, where there is no GPU."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.int4_threads import Int4Threads
from support.thread_emulator import Ref

from pallas_kernels.int4_matmul.reference import dequantize
from pallas_kernels.int4_matmul.tiles import groups_per_tile, interleave, padded, to_tiles
from pallas_kernels.int4_matmul.warp_code import WarpCode
from pallas_kernels.int4_matmul.warp_cut import TILE_BYTES, WarpConfig
from pallas_kernels.rms_norm.reference import add_rms_norm_reference

LAYER, EPS = 1, 1e-5


class Ran(NamedTuple):
    """The kernel's output and the exact one, float64, the emulator, and of a norm the sum that it wrote and the one expected."""

    found: np.ndarray
    exact: np.ndarray
    threads: Int4Threads
    total: np.ndarray
    expected_total: np.ndarray


def run(
    monkeypatch, m: int, k: int, n: int, group_size: int, config: WarpConfig, dtype: str,
    *, gated: bool = False, norm: bool = False,
) -> Ran:  # fmt: skip
    """The whole grid, block by block."""
    rng = np.random.default_rng(m * k + n)
    packed = jnp.asarray(rng.integers(0, 256, (n, k // 2), dtype=np.uint8))
    scale = jnp.asarray(rng.uniform(0.01, 0.03, (k // group_size, n)), dtype)
    zero = jnp.asarray(rng.choice([0, 15, 7, 8], (k // group_size, n)).astype(np.uint8))
    x, delta = (jnp.asarray(rng.normal(size=(m, k)), dtype) for _ in range(2))
    gain = jnp.asarray(rng.normal(size=(LAYER + 1, k)), dtype)
    total, normed = add_rms_norm_reference(x, delta, gain, jnp.int32(LAYER), eps=EPS)
    factor = np.asarray(normed if norm else x, np.float64)
    exact = factor @ np.asarray(dequantize(packed, scale, zero, group_size=group_size), np.float64).T
    rows = packed, scale, zero
    if gated:
        rows = interleave(packed, 0), interleave(scale, 1), interleave(zero, 1)
        gate, up = np.split(exact, 2, axis=1)
        exact = gate / (1 + np.exp(-gate)) * up
    words, meta = to_tiles(*rows, group_size=group_size)
    outputs, inputs = padded(n, k)
    groups = groups_per_tile(group_size)
    grid, rounds = config.grid(outputs // 16)
    threads = Int4Threads(monkeypatch, 1 << 21)
    other = np.full_like(np.asarray(words), 0x7F)
    given = (x, delta, gain) if norm else (x,)
    refs = [threads.put(np.asarray(a).view(np.uint16)) for a in given]
    refs.append(threads.put(np.stack([other, np.asarray(words)])))
    refs.append(threads.put(np.stack([np.asarray(meta) * 0 + 0x7FC00000, np.asarray(meta)])))
    refs.append(threads.put(np.array([LAYER], np.int32)))
    sums = threads.put(np.zeros((m, k), np.uint16))
    out = threads.put(np.full(exact.shape, np.nan, np.float16))
    ring = threads.put(np.full(config.shared_bytes(m, groups, rounds, k if norm else 0), 0xFF, np.uint8))
    after = threads.put(np.full(256, 0x5A, np.uint8))
    refs += [*([sums] if norm else []), out, Ref(address=ring.address)]
    with np.errstate(all="ignore"):
        for threads.block in range(grid):
            WarpCode(
                m, k, n, outputs // 16, inputs // 128, groups, dtype, config, gated, EPS if norm else None
            ).emit(*refs)  # fmt: skip
    assert (threads.get(after, np.uint8) == 0x5A).all(), "nothing is written past the shared memory"
    half = np.dtype(jnp.dtype(dtype))
    found = threads.get(out, half).astype(np.float64)
    return Ran(found, exact, threads, threads.get(sums, half), np.asarray(total))


def relative(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize(
    ("m", "k", "n", "group_size", "config"),
    [
        (1, 1024, 48, 128, WarpConfig(1, 4, 3)),
        (3, 512, 64, 128, WarpConfig(2, 4, 2)),
        (8, 576, 40, 64, WarpConfig(2, 4, 2)),  # neither outputs nor inputs are whole tiles
        (16, 512, 112, 32, WarpConfig(3, 4, 2)),  # the last block has fewer strips
        (17, 640, 32, 640, WarpConfig(1, 4, 2)),  # one group for all inputs
        (2, 512, 144, 128, WarpConfig(1, 4, 3, blocks=4)),  # blocks that walk over tiles, the last round not full
        (5, 128, 32, 16, WarpConfig(2, 4, 4)),  # three warps have no inputs
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_kernel_multiplies(monkeypatch, m, k, n, group_size, config, dtype):
    found, exact, threads, *_ = run(monkeypatch, m, k, n, group_size, config, dtype)
    assert np.isfinite(found).all(), "every output is written"
    assert relative(found, exact) < (4e-3 if dtype == "bfloat16" else 4e-4)
    tiles = padded(n, k)[0] // 16 * (padded(n, k)[1] // 128)
    weights = tiles * (TILE_BYTES + 64 * groups_per_tile(group_size))
    blocks = config.grid(padded(n, k)[0] // 16)[0] * config.grid(padded(n, k)[0] // 16)[1]
    assert threads.read_bytes == weights + blocks * 2 * m * k, (
        "each weight is read once, x once by each block and round"
    )


@pytest.mark.parametrize("config", [WarpConfig(2, 4, 2), WarpConfig(3, 4, 2), WarpConfig(2, 4, 3, blocks=2)])
def test_the_gated_kernel_applies_the_gate(monkeypatch, config):
    found, exact, *_ = run(monkeypatch, 5, 512, 128, 128, config, "bfloat16", gated=True)
    assert found.shape == (5, 64)
    assert relative(found, exact) < 4e-3


def test_a_token_has_the_same_bits_whatever_batch_it_is_in(monkeypatch):
    rng = np.random.default_rng(0)
    packed = jnp.asarray(rng.integers(0, 256, (32, 256), dtype=np.uint8))
    scale, zero = jnp.full((4, 32), 0.02, jnp.bfloat16), jnp.full((4, 32), 7, jnp.uint8)
    words, meta = to_tiles(packed, scale, zero, group_size=128)
    x = np.asarray(jax.random.normal(jax.random.key(0), (9, 512), jnp.bfloat16)).view(np.uint16)
    found = {}
    for m in (1, 4, 9):
        config = WarpConfig(2, 4, 2)
        threads = Int4Threads(monkeypatch, 1 << 20)
        refs = [threads.put(x[:m]), *(threads.put(np.asarray(a)) for a in (words, meta, np.zeros(1, np.int32)))]
        out = threads.put(np.zeros((m, 32), np.uint16))
        ring = threads.put(np.zeros(config.shared_bytes(m, 1, 1), np.uint8))
        refs += [out, Ref(address=ring.address)]
        WarpCode(m, 512, 32, 2, 4, 1, "bfloat16", config, False).emit(*refs)
        found[m] = threads.get(out, np.uint16).copy()
    np.testing.assert_array_equal(found[1], found[9][:1])
    np.testing.assert_array_equal(found[4], found[9][:4])


@pytest.mark.parametrize(
    ("m", "k", "n", "config", "gated"),
    [
        (1, 1024, 48, WarpConfig(1, 4, 3), False),
        (
            2,
            1152,
            64,
            WarpConfig(2, 4, 3),
            False,
        ),  # a thread has two pieces or one; the last turn has one block of inputs for 4 warps
        (1, 2048, 128, WarpConfig(2, 4, 2, blocks=2), True),  # blocks that walk over tiles
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_norm_before_it_can_be_part_of_it(monkeypatch, m, k, n, config, gated, dtype):
    ran = run(monkeypatch, m, k, n, 128, config, dtype, gated=gated, norm=True)
    np.testing.assert_array_equal(ran.total, ran.expected_total)
    assert relative(ran.found, ran.exact) < (4e-3 if dtype == "bfloat16" else 5e-4)
