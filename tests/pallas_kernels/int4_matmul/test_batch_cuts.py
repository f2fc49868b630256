"""How products of many tokens are cut: every step of every tile is some block's; and the kernels lower for every kind of cut."""

from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.int4_matmul.choice import Config, Shape, fits, kernel_of
from pallas_kernels.int4_matmul.mosaic_stream import Shares, StreamConfig
from pallas_kernels.int4_matmul.mosaic_wgmma import WgmmaConfig
from pallas_kernels.int4_matmul.tiles import groups_per_tile
from pallas_kernels.int4_matmul.warp_cut import WarpConfig


@pytest.mark.parametrize("cluster", [1, 2])
@pytest.mark.parametrize("sharing", [0, 132])
@pytest.mark.parametrize(("tiles", "steps"), [(224, 32), (32, 112), (3, 1), (1, 5), (132, 4), (133, 7)])
def test_every_step_of_every_tile_is_one_units_and_owners_know_their_helpers(tiles, steps, sharing, cluster):
    shares = Shares.of(StreamConfig(2, 256, 3, cluster, min(sharing, 132 // cluster)), tiles, steps)
    units = np.arange(shares.units)
    share, first, begin, counts, _ = np.broadcast_arrays(*shares.segments(units), units)
    done, owners = np.zeros((tiles, steps), int), {}
    helpers = defaultdict(list)
    for number in range(counts.max()):
        tile, start, stop = np.broadcast_arrays(*shares.segment(units, share, first, begin, number))
        several = np.asarray(shares.helpers(share, tile)) if shares.rest else 0 * units
        for unit in units[number < counts]:
            assert start[unit] < stop[unit], "no segment is empty"
            done[tile[unit], start[unit] : stop[unit]] += 1
            if start[unit] == 0:
                owners[tile[unit]] = unit, several[unit] if stop[unit] < steps else 0
            else:
                assert number == shares.rounds, "others wait for it: it comes first in the last round"
                helpers[tile[unit]].append(unit)
    assert (done == 1).all()
    for tile, (unit, several) in owners.items():
        assert sorted(helpers[tile]) == list(range(unit - several, unit)), "those of lower numbers, which start earlier"


def test_sharing_evens_out_the_last_round():
    def busiest(sharing: int) -> int:
        shares = Shares.of(StreamConfig(2, 256, 3, 1, sharing), 224, 32)
        units = np.arange(132)
        share, first, begin, counts, _ = np.broadcast_arrays(*shares.segments(units), units)
        steps = 0 * units
        for number in range(counts.max()):
            _, start, stop = np.broadcast_arrays(*shares.segment(units, share, first, begin, number))
            steps += np.where(number < counts, stop - start, 0)
        return steps.max()

    assert [busiest(sharing) for sharing in (0, 132)] == [64, 55], "224 tiles of 32 steps are 54.3 for each of 132"


@pytest.mark.parametrize("config", [WgmmaConfig(5, 64, 3), WgmmaConfig(2, 100, 3), WgmmaConfig(2, 64, 3, in_flight=3)])
def test_a_cut_that_can_not_be_is_refused(config):
    refused(config, "1 to 4 rows")


@pytest.mark.parametrize(
    "config",
    [StreamConfig(2, 72, 3, 2), StreamConfig(2, 64, 3, 3), StreamConfig(2, 64, 3, 2, 67), StreamConfig(0, 64, 3)],
)
def test_a_shared_cut_that_can_not_be_is_refused(config):
    refused(config, "sharing up to the units")


def refused(config, message: str) -> None:
    shape = Shape(256, 1024, 28672, 128)
    assert not fits(config, shape)
    with pytest.raises(ValueError, match=message):
        lower(shape.m, shape.k, shape.n, config)


def lower(
    m: int, k: int, n: int, config: Config, group_size: int = 128, dtype: str = "bfloat16", *, gated: bool = False
) -> str:
    tiles = (2, -(-n // 16), k // 128)
    described = (
        jax.ShapeDtypeStruct((m, k), dtype),
        jax.ShapeDtypeStruct((*tiles, 256), jnp.int32),
        jax.ShapeDtypeStruct((*tiles, groups_per_tile(group_size), 16), jnp.int32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    )
    traced = jax.jit(lambda *arrays: kernel_of(config)(*arrays, outputs=n, gated=gated)).trace(*described)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    ("m", "n", "config"),
    [
        (256, 28672, StreamConfig(2, 256, 3, 1, 132)),
        (200, 28672, StreamConfig(2, 128, 5, 2, 40)),
        (300, 9040, StreamConfig(2, 256, 3, 2)),
        (17, 40, StreamConfig(4, 32, 4, 2, 66)),
        (17, 40, WgmmaConfig(4, 32, 4)),  # outputs that are no whole 64
        (17, 40, WgmmaConfig(4, 32, 4, split=4, in_flight=2)),
    ],
)
def test_lowers_for_cuda(m, n, config):
    text = lower(m, 1024, n, config)
    assert "mosaic_gpu" in text
    assert f"-> (tensor<{m}x{n}xbf16>" in text


@pytest.mark.parametrize("config", [StreamConfig(2, 64, 3, 2, 66), WgmmaConfig(2, 64, 3), WarpConfig(3, 4, 2)], ids=str)
def test_a_gate_halves_the_outputs(config):
    assert "-> (tensor<17x72xbf16>" in lower(17, 256, 144, config, gated=True)


@pytest.mark.parametrize(
    "config",
    [WgmmaConfig(2, 64, 3), WgmmaConfig(2, 64, 3, in_flight=2), StreamConfig(2, 64, 3, 2, 66)],
    ids=["wgmma", "two in flight", "stream"],
)
@pytest.mark.parametrize(
    ("blocks", "group_size", "dtype"),
    [(1, 16, "bfloat16"), (2, 32, "float16"), (3, 64, "bfloat16"), (4, 128, "float16")],
)
def test_lowers_with_few_blocks_of_inputs_and_every_group_size(config, blocks, group_size, dtype):
    assert "mosaic_gpu" in lower(64, 128 * blocks, 128, config, group_size, dtype)
