"""On a GPU: every real shape and every kernel against float64, and that a token's bits don't depend on its batch."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

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
    jobs = [
        (m, kernel)
        for m in (1, 3, 17, 65, 200)
        for kernel in (None, "wgmma", *(["warp"] if m <= MOST_WARP_TOKENS else []))
    ]
    xs = {m: jnp.asarray(np.random.default_rng().normal(size=(m, case.k)), dtype) for m, _ in jobs}

    def compiled(job):
        m, kernel = job
        options = {"outputs": case.n, "group_size": case.group_size, "implementation": kernel}
        return jax.jit(partial(int4_matmul_tiles, **options)).lower(xs[m], words, meta, 1).compile()

    with ThreadPoolExecutor() as pool:
        programs = list(pool.map(compiled, jobs))
    for (m, kernel), program in zip(jobs, programs, strict=True):
        with jax.enable_x64(True):
            exact = np.asarray(jnp.asarray(xs[m], jnp.float64) @ w.T)
        out = np.asarray(program(xs[m], words, meta, 1), np.float64)
        error = np.linalg.norm(out - exact) / np.linalg.norm(exact)
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
