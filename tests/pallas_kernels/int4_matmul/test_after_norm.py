"""The norm and the int4 matmul after it: the same on every platform, one kernel for CUDA where that is worth it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.int4_matmul.after_norm import MOST_TOKENS, norm_int4_matmul_tiles
from pallas_kernels.int4_matmul.api import int4_matmul_tiles
from pallas_kernels.int4_matmul.tiles import groups_per_tile, padded, to_tiles
from pallas_kernels.rms_norm.reference import add_rms_norm_reference

OUTPUTS, EPS = 96, 1e-5


def lowered(tokens: int, inputs: int, dtype=jnp.bfloat16) -> str:
    outputs, width = padded(OUTPUTS, inputs)
    tiles = (2, outputs // 16, width // 128)
    x, gain = jax.ShapeDtypeStruct((tokens, inputs), dtype), jax.ShapeDtypeStruct((2, inputs), dtype)
    words = jax.ShapeDtypeStruct((*tiles, 256), jnp.int32)
    meta = jax.ShapeDtypeStruct((*tiles, groups_per_tile(64), 16), jnp.int32)

    @jax.jit
    def run(x, delta, gain, words, meta):
        return norm_int4_matmul_tiles(x, delta, gain, words, meta, 1, eps=EPS, outputs=OUTPUTS, group_size=64)

    return run.trace(x, x, gain, words, meta).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_token_or_two_take_one_kernel(dtype):
    for tokens in range(1, MOST_TOKENS + 1):
        text = lowered(tokens, 1024, dtype)
        assert f"norm_int4_matmul_warp_{tokens}x1024x{OUTPUTS}" in text
        assert text.count("@mosaic_gpu_v2") == 1


@pytest.mark.parametrize(
    ("tokens", "inputs", "dtype"),
    [(MOST_TOKENS + 1, 1024, jnp.bfloat16), (1, 576, jnp.bfloat16), (1, 1024, jnp.float32)],
)
def test_others_take_two(tokens, inputs, dtype):
    """More tokens, inputs that are no whole tiles, a dtype that no kernel has."""
    text = lowered(tokens, inputs, dtype)
    assert "norm_int4" not in text
    assert ("add_rms_norm" in text) == (dtype != jnp.float32)


@pytest.mark.parametrize("gated", [False, True])
def test_elsewhere_it_is_the_one_after_the_other(gated):
    rng = np.random.default_rng(0)
    packed = jnp.asarray(rng.integers(0, 256, (OUTPUTS, 64), dtype=np.uint8))
    words, meta = to_tiles(
        packed, jnp.full((2, OUTPUTS), 0.02, jnp.bfloat16), jnp.full((2, OUTPUTS), 7, jnp.uint8), group_size=64
    )
    x, delta = (jnp.asarray(rng.normal(size=(2, 128)), jnp.bfloat16) for _ in range(2))
    gain = jnp.asarray(rng.normal(size=(1, 128)), jnp.bfloat16)
    total, normed = add_rms_norm_reference(x, delta, gain, jnp.int32(0), eps=EPS)
    options = {"outputs": OUTPUTS, "group_size": 64, "gated": gated}
    found = norm_int4_matmul_tiles(x, delta, gain, words[None], meta[None], 0, eps=EPS, **options)
    np.testing.assert_array_equal(found[0], total)
    np.testing.assert_array_equal(found[1], int4_matmul_tiles(normed, words[None], meta[None], 0, **options))
