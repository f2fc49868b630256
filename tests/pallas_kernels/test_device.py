"""GPUs that a kernel was not written for take another path and say which."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import device
from pallas_kernels.int4_matmul import api
from pallas_kernels.int4_matmul.tiles import groups_per_tile, to_tiles
from pallas_kernels.paged_attention import mosaic
from pallas_kernels.paged_attention.api import paged_decode
from pallas_kernels.paged_attention.reference import Pages


def use_gpu(monkeypatch, capability: tuple[int, int]) -> None:
    for module in (api, device):
        monkeypatch.setattr(module, "gpu_capability", lambda: capability)


def lowered(rows: int) -> str:
    x = jax.ShapeDtypeStruct((rows, 256), jnp.bfloat16)
    words = jax.ShapeDtypeStruct((2, 4, 2, 256), jnp.int32)
    meta = jax.ShapeDtypeStruct((2, 4, 2, groups_per_tile(128), 16), jnp.int32)
    function = jax.jit(lambda x, w, m: api.int4_matmul_tiles(x, w, m, 1, outputs=64, group_size=128))
    return function.trace(x, words, meta).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="says what a machine without a GPU lowers for")
def test_a_machine_without_a_gpu_lowers_for_hopper():
    assert device.gpu_capability() == (9, 0)


def test_before_hopper_few_tokens_have_the_warp_kernel_and_many_the_reference(monkeypatch):
    use_gpu(monkeypatch, (8, 6))
    assert "int4_matmul_warp" in lowered(4)
    assert "mosaic_gpu" not in lowered(64)


def test_before_ampere_int4_runs_dequantized_with_one_clear_warning(monkeypatch):
    use_gpu(monkeypatch, (7, 5))
    with pytest.warns(UserWarning, match=r"compute capability \(7, 5\) is older than \(8, 0\)"):
        assert "mosaic_gpu" not in lowered(4)


def test_what_this_gpu_has_not_is_an_error_if_it_is_named(monkeypatch):
    use_gpu(monkeypatch, (8, 6))
    rng = np.random.default_rng(0)
    words, meta = to_tiles(
        jnp.asarray(rng.integers(0, 256, (32, 64), dtype=np.uint8)), jnp.ones((1, 32), jnp.bfloat16), jnp.zeros((1, 32), jnp.uint8),
        group_size=128,
    )  # fmt: skip
    x = jnp.ones((2, 128), jnp.bfloat16)
    with pytest.raises(ValueError, match="needs a Hopper GPU"):
        api.int4_matmul_tiles(x, words[None], meta[None], 0, outputs=32, group_size=128, implementation="wgmma")
    with pytest.raises(ValueError, match="takes bfloat16 or float16"):
        api.int4_matmul_tiles(
            x.astype(jnp.float32), words[None], meta[None], 0, outputs=32, group_size=128, implementation="warp"
        )
    with pytest.raises(ValueError, match="unknown"):
        api.int4_matmul_tiles(x, words[None], meta[None], 0, outputs=32, group_size=128, implementation="marlin")
    with pytest.raises(ValueError, match="take tiles"):
        api.int4_matmul_tiles(x, words[None], meta[None], 0, outputs=48, group_size=128)


def test_attention_kernels_are_hoppers(monkeypatch):
    q = jnp.zeros((1, 8, 128), jnp.bfloat16)
    pages = Pages(jnp.zeros((1, 4, 2, 64, 128), jnp.bfloat16), None, 16)
    assert mosaic.reason_not_decode(q, pages, 4) is None
    use_gpu(monkeypatch, (8, 9))
    assert "compute capability (8, 9)" in (mosaic.reason_not_decode(q, pages, 4) or "")
    table, lens = jnp.zeros((1, 4), jnp.int32), jnp.ones(1, jnp.int32)
    with pytest.raises(ValueError, match="can't take this call"):
        paged_decode(q, pages, pages, 0, table, lens, scale=1.0, implementation="mosaic")
    with warnings.catch_warnings():
        assert paged_decode(q, pages, pages, 0, table, lens, scale=1.0).shape == q.shape
