"""The weights that a thread of the batched kernels feeds to the tensor cores, and what it writes, by an emulator of its code."""

import jax.numpy as jnp
import numpy as np
import pytest
from support.thread_emulator import THREADS, Threads, value

from pallas_kernels import ptx
from pallas_kernels.int4_matmul import wgmma_results
from pallas_kernels.int4_matmul.reference import dequantize
from pallas_kernels.int4_matmul.tiles import groups_per_tile, to_tiles
from pallas_kernels.int4_matmul.wgmma_registers import weight_pairs
from pallas_kernels.ptx import SHORT_NAMES, Int

OUTPUTS, INPUTS = 128, 128
"""Two warpgroups' worth of one block of inputs."""


@pytest.mark.parametrize("halves", [(0, 1), (0,), (1,)], ids=str)
@pytest.mark.parametrize("group_size", [16, 32, 64, 128])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_each_register_holds_the_weights_of_its_place_in_wgmmas_operand(monkeypatch, halves, group_size, dtype):
    rng = np.random.default_rng(group_size)
    packed = jnp.asarray(rng.integers(0, 256, (OUTPUTS, INPUTS // 2), dtype=np.uint8))
    scale = jnp.asarray(rng.uniform(0.01, 0.03, (INPUTS // group_size, OUTPUTS)), dtype)
    zero = jnp.asarray(rng.choice([0, 15, 7], scale.shape).astype(np.uint8))
    # The PTX rounds (q - zero) * scale once, as this does.
    weights = np.asarray(dequantize(packed, scale, zero, group_size=group_size).astype(dtype))
    words, meta = to_tiles(packed, scale, zero, group_size=group_size)
    threads = Threads(monkeypatch, 1 << 16)
    addresses = [Int(value(threads.put(np.asarray(a)).address, np.uint32)) for a in (words, meta)]
    for group in range(2):
        number = Int(value(group, np.uint32))
        pairs = weight_pairs(*addresses, number, groups_per_tile(group_size), SHORT_NAMES[dtype], halves)
        assert len(pairs) == 16 * len(halves)
        for register, pair in enumerate(pairs):
            found = np.asarray(pair.value).astype(np.uint32).view(np.uint16).reshape(THREADS, 2).view(jnp.dtype(dtype))
            lane, warp = np.arange(THREADS) % 32, np.arange(THREADS) // 32
            # PTX ISA, wgmma's A in registers: rows r and r + 8 of a warp's 16, columns in pairs, 8 a register pair.
            rows = 64 * group + 16 * warp + lane // 4 + 8 * (register % 2)
            columns = 64 * halves[0] + 8 * (register // 2) + 2 * (lane % 4)
            np.testing.assert_array_equal(found[:, 0], weights[rows, columns])
            np.testing.assert_array_equal(found[:, 1], weights[rows, columns + 1])


def accumulators(product: np.ndarray) -> list:
    """[64 outputs, tokens] as wgmma leaves it in the registers of a warpgroup."""
    lane, warp = np.arange(THREADS) % 32, np.arange(THREADS) // 32
    return [
        value(product[16 * warp + lane // 4 + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * (lane % 4) + i % 2], np.float32)
        for i in range(product.shape[1] // 2)
    ]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_results_are_written_where_they_belong(monkeypatch, gated, dtype):
    """Tokens 3 to 26 of 22, outputs 64 to 127 of 192: what is past the last token stays what it was."""
    tokens, first, m, row, outputs = 24, 3, 22, 64, 192
    product = np.random.default_rng(0).normal(size=(64, tokens)).astype(np.float32)
    threads = Threads(monkeypatch, 1 << 16)
    monkeypatch.setattr(wgmma_results, "arith", ptx.arith)
    width = outputs // 2 if gated else outputs
    out = threads.put(np.full((m, width), 7, jnp.dtype(dtype)))
    write = wgmma_results.write_gated if gated else wgmma_results.write_product
    places = [Int(value(number, np.uint32)) for number in (first, row)]
    write(accumulators(product), ptx.global_address(out), *places, m, outputs, SHORT_NAMES[dtype])
    found = threads.get(out, jnp.dtype(dtype)).astype(np.float32)
    turns = product.reshape(-1, 2, 8, tokens).astype(np.float64)
    if gated:
        product = (turns[:, 0] / (1 + np.exp(-turns[:, 0])) * turns[:, 1]).reshape(32, tokens)
        row //= 2
    expected = np.full((m, width), 7.0)
    expected[first:, row : row + len(product)] = product.T[: m - first].astype(jnp.dtype(dtype))
    np.testing.assert_allclose(found, expected, rtol=1e-2 if dtype == "bfloat16" else 1e-3)
    assert (found[:first] == 7).all()
