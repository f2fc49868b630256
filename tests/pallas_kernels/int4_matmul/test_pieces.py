"""A last round of tiles that is cut in two: every token of every tile is some block's, and rounds get shorter."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.int4_matmul.choice import Shape, fits, tails
from pallas_kernels.int4_matmul.mosaic_wgmma import MULTIPROCESSORS, WgmmaConfig, int4_matmul_wgmma
from pallas_kernels.int4_matmul.tiles import groups_per_tile


def longest(config: WgmmaConfig, strips: int, m: int) -> int:
    """Tokens that the busiest multiprocessor works on, if each block goes to the one that is free first."""
    free = np.zeros(MULTIPROCESSORS, int)
    for piece in config.pieces(strips, m):
        for _ in range(piece.count):
            free[free.argmin()] += piece.tokens
    return int(free.max())


@pytest.mark.parametrize(
    ("strips", "m", "config"),
    [
        (1792, 256, WgmmaConfig(2, 256, 3)),
        (1792, 256, WgmmaConfig(2, 256, 3, tail=192)),
        (1792, 2048, WgmmaConfig(2, 256, 3, tail=176)),
        (1792, 200, WgmmaConfig(2, 128, 5, tail=64)),
        (565, 300, WgmmaConfig(2, 256, 3, tail=176)),  # the last tile has fewer strips
        (132 * 8, 256, WgmmaConfig(2, 256, 3, tail=192)),  # nothing left to cut
        (8, 256, WgmmaConfig(2, 256, 3, tail=192)),  # nothing but a last round
    ],
)
def test_pieces_cover_every_tile_once(strips, m, config):
    output_tiles, token_tiles = -(-strips // (4 * config.rows)), -(-m // config.tokens)
    done = np.zeros((output_tiles * token_tiles, config.tokens), int)
    block = 0
    for piece in config.pieces(strips, m):
        assert piece.block == block, "blocks are numbered through"
        block += piece.count
        done[piece.tile : piece.tile + piece.count, piece.start : piece.start + piece.tokens] += 1
    assert (done == 1).all()


def test_a_tail_shortens_the_last_round():
    strips, m = 1792, 256  # 28672 outputs
    assert longest(WgmmaConfig(2, 256, 3), strips, m) == 512
    shape = Shape(m, 4096, strips * 16, 128)
    assert tails(shape, 2, 256) == [192, 224]
    assert longest(WgmmaConfig(2, 256, 3, tail=192), strips, m) == 448
    assert tails(shape, 2, 128) == [64, 80]
    assert longest(WgmmaConfig(2, 128, 5, tail=64), strips, m) == 448


@pytest.mark.parametrize("shape", [Shape(256, 4096, 4096, 128), Shape(256, 4096, 132 * 128, 128)], ids=str)
def test_full_or_single_rounds_have_no_tail(shape):
    assert tails(shape, 2, 256) == []


@pytest.mark.parametrize("config", [WgmmaConfig(2, 256, 3, 2, tail=192), WgmmaConfig(2, 256, 3, tail=100),
                                    WgmmaConfig(2, 64, 3, tail=64), WgmmaConfig(2, 64, 3, in_flight=3)])  # fmt: skip
def test_a_cut_that_can_not_be_is_refused(config):
    shape = Shape(256, 1024, 28672, 128)
    assert not fits(config, shape, gated=False)
    with pytest.raises(ValueError, match="a tail likewise"):
        lower(shape.m, shape.k, shape.n, config)


def lower(m: int, k: int, n: int, config: WgmmaConfig, group_size: int = 128, dtype: str = "bfloat16") -> str:
    tiles = (2, -(-n // 16), k // 128)
    described = (
        jax.ShapeDtypeStruct((m, k), dtype),
        jax.ShapeDtypeStruct((*tiles, 256), jnp.int32),
        jax.ShapeDtypeStruct((*tiles, groups_per_tile(group_size), 16), jnp.int32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    )
    traced = jax.jit(partial(int4_matmul_wgmma, outputs=n, config=config)).trace(*described)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    ("m", "n", "config"),
    [
        (256, 28672, WgmmaConfig(2, 256, 3, tail=192)),
        (200, 28672, WgmmaConfig(2, 128, 5, tail=64, in_flight=2)),
        (300, 9040, WgmmaConfig(2, 256, 3, tail=176)),
        (17, 40, WgmmaConfig(4, 32, 4)),  # outputs that are no whole 64
        (17, 40, WgmmaConfig(4, 32, 4, split=4, in_flight=2)),
    ],
)
def test_lowers_for_cuda(m, n, config):
    text = lower(m, 1024, n, config)
    assert "mosaic_gpu" in text
    assert f"-> (tensor<{m}x{n}xbf16>" in text


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("group_size", "dtype"), [(16, "bfloat16"), (32, "float16"), (64, "bfloat16"), (128, "float16")]
)
def test_lowers_with_few_blocks_of_inputs_and_every_group_size(in_flight, blocks, group_size, dtype):
    config = WgmmaConfig(2, 64, 3, in_flight=in_flight)
    assert "mosaic_gpu" in lower(64, 128 * blocks, 128, config, group_size, dtype)
