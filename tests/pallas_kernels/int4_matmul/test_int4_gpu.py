"""On a GPU: every real shape and every kernel against float64, and that a token's bits don't depend on its batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.int4_matmul.api import int4_matmul_tiles
from pallas_kernels.int4_matmul.cases import CASES
from pallas_kernels.int4_matmul.choice import MOST_WARP_TOKENS
from pallas_kernels.int4_matmul.reference import dequantize
from pallas_kernels.int4_matmul.tiles import to_tiles

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU"),
]
TOLERANCE = {"bfloat16": 4e-3, "float16": 5e-4}


def random_matrix(case, dtype: str, seed: int):
    """Rows and tiles of one matrix; zero points at both ends of their range."""
    rng = np.random.default_rng(seed)
    groups = (case.k // case.group_size, case.n)
    rows = (
        jnp.asarray(rng.integers(0, 256, (case.n, case.k // 2), dtype=np.uint8)),
        jnp.asarray(rng.uniform(0.01, 0.03, groups), dtype),
        jnp.asarray(rng.choice([0, 15, 5, 8], groups).astype(np.uint8)),
    )
    words, meta = to_tiles(*rows, group_size=case.group_size)
    return rows, jnp.stack([words ^ 0x55, words]), jnp.stack([meta, meta])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.model}-{case.name}")
def test_every_kernel_is_right(case, dtype):
    rows, words, meta = random_matrix(case, dtype, seed=case.k + case.n)
    with jax.enable_x64(True):
        w = jnp.asarray(dequantize(*rows, group_size=case.group_size), jnp.float64)
    for m in (1, 3, 17, 65, 200):
        x = jnp.asarray(np.random.default_rng().normal(size=(m, case.k)), dtype)
        with jax.enable_x64(True):
            exact = np.asarray(jnp.asarray(x, jnp.float64) @ w.T)
        for kernel in (None, "wgmma", *(["warp"] if m <= MOST_WARP_TOKENS else [])):
            out = int4_matmul_tiles(
                x, words, meta, 1, outputs=case.n, group_size=case.group_size, implementation=kernel
            )
            error = np.linalg.norm(np.asarray(out, np.float64) - exact) / np.linalg.norm(exact)
            assert error < TOLERANCE[dtype], (m, kernel)


def test_an_invariant_product_does_not_depend_on_the_batch():
    case = CASES[-1]
    _, words, meta = random_matrix(case, "bfloat16", seed=0)
    x = jax.random.normal(jax.random.key(0), (200, case.k), jnp.bfloat16)

    def product(m: int) -> np.ndarray:
        out = int4_matmul_tiles(x[:m], words, meta, 1, outputs=case.n, group_size=case.group_size, invariant=True)
        return np.asarray(out).view(np.uint16)

    whole = product(200)
    for m in (1, 5, 17, 64, 65):
        np.testing.assert_array_equal(product(m), whole[:m])
