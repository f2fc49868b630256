"""The kernel of the residual add with norm: its threads by the emulator, its program lowered for CUDA."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.thread_emulator import Threads

from pallas_kernels import ptx
from pallas_kernels.rms_norm import mosaic
from pallas_kernels.rms_norm.api import MOST_TOKENS, add_rms_norm
from pallas_kernels.rms_norm.reference import add_rms_norm_reference

EPS, LAYERS, LAYER = 1e-5, 3, 2
DTYPES = [jnp.bfloat16, jnp.float16]


def arrays(tokens: int, size: int, dtype, scale: float = 1.0) -> tuple[jax.Array, jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(size), 3)
    x, delta = (jax.random.normal(key, (tokens, size), jnp.float32) * scale for key in keys[:2])
    weight = 1 + 0.2 * jax.random.normal(keys[2], (LAYERS, size), jnp.float32)
    return x.astype(dtype), delta.astype(dtype), weight.astype(dtype)


def emulate(monkeypatch, x, delta, weight) -> tuple[np.ndarray, np.ndarray]:
    """Sum and norm that the kernel's threads store."""
    row = mosaic.Row(x.shape[1])
    threads = Threads(monkeypatch, 1 << 20, row.threads)
    given = (
        [x, weight, np.array([LAYER], np.int32)] if delta is None else [x, delta, weight, np.array([LAYER], np.int32)]
    )
    inputs = [threads.put(np.asarray(a)) for a in given]
    outputs = [threads.put(np.zeros_like(np.asarray(x))) for _ in range(1 if delta is None else 2)]
    after = threads.put(np.full(256, 0x5A, np.uint8))
    shared = threads.put(np.zeros(row.threads // 32, np.float32))
    for token in range(x.shape[0]):
        monkeypatch.setattr(ptx, "block_index", lambda token=token: ptx.constant(token))
        addresses = [ptx.global_address(ref) for ref in (*inputs, *outputs)]
        mosaic.emit_thread(row, ptx.SHORT_NAMES[str(x.dtype)], EPS, addresses, ptx.shared_address(shared))
    assert (threads.get(after, np.uint8) == 0x5A).all()
    total, normed = ([np.asarray(x)] + [threads.get(ref, x.dtype) for ref in outputs])[-2:]
    return total, normed


def steps_apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many values of the 16-bit float type lie between, the nearer one included."""
    ordered = [np.where(bits < 0, -32768 - bits, bits) for bits in (v.view(np.int16).astype(np.int32) for v in (a, b))]
    return np.abs(ordered[0] - ordered[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [8, 576, 896, 2048, 3584, 4096, 5120, 8192])
def test_stores_what_the_reference_stores(monkeypatch, size, dtype):
    x, delta, weight = arrays(2, size, dtype, scale=3.0)
    # Not as one program, in which XLA may leave out the sum's rounding.
    total, normed = (np.asarray(a) for a in add_rms_norm_reference(x, delta, weight, jnp.int32(LAYER), eps=EPS))
    found_total, found = emulate(monkeypatch, x, delta, weight)
    assert np.array_equal(found_total, total)
    # Sums in another order: where the product lies at a rounding border it is the neighbour's, and one step is up to two after
    # the weight.
    apart = steps_apart(found, normed)
    assert apart.max() <= 2
    assert np.mean(apart > 0) < 2e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_anything_to_add(monkeypatch, dtype):
    x, _, weight = arrays(3, 1032, dtype)
    normed = np.asarray(add_rms_norm_reference(x, None, weight, jnp.int32(LAYER), eps=EPS)[1])
    apart = steps_apart(emulate(monkeypatch, x, None, weight)[1], normed)
    assert apart.max() <= 2
    assert np.mean(apart > 0) < 2e-3


@pytest.mark.parametrize("case", ["zeros", "small", "large"])
def test_eps_and_overflow(monkeypatch, case):
    """A row of padding is zeros; float16 overflows in the sum as it does in the reference."""
    x, delta, weight = arrays(1, 64, jnp.float16, {"zeros": 0.0, "small": 1e-4, "large": 6e4}[case])
    total, normed = (np.asarray(a) for a in add_rms_norm_reference(x, delta, weight, jnp.int32(LAYER), eps=EPS))
    found_total, found = emulate(monkeypatch, x, delta, weight)
    assert np.isinf(total).any() == (case == "large")
    np.testing.assert_array_equal(found_total, total)
    np.testing.assert_allclose(found, normed, rtol=2**-9, atol=0)


def lowered(tokens: int, size: int, dtype, implementation: str | None, adds: bool = True) -> str:
    struct = jax.ShapeDtypeStruct
    x = struct((tokens, size), dtype)
    run = partial(add_rms_norm, eps=EPS, implementation=implementation)
    arguments = x, x if adds else None, struct((LAYERS, size), dtype), struct((), jnp.int32)
    return jax.jit(run).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize(
    ("tokens", "size"), [(1, 576), (16, 896), (64, 2048), (1, 3584), (1, 4096), (256, 5120), (512, 8192), (1, 32768)]
)
def test_lowers_for_cuda(tokens, size, adds, dtype):
    assert lowered(tokens, size, dtype, "mosaic", adds).count("@mosaic_gpu_v2") == 1


@pytest.mark.parametrize(
    ("tokens", "size", "dtype", "kernels"),
    [(1, 4096, jnp.bfloat16, 1), (MOST_TOKENS, 4096, jnp.float16, 1), (MOST_TOKENS + 1, 4096, jnp.bfloat16, 0),
     (1, 4096, jnp.float32, 0), (1, 100, jnp.bfloat16, 0)],
)  # fmt: skip
def test_default_takes_the_kernel_for_decode(tokens, size, dtype, kernels):
    assert lowered(tokens, size, dtype, None).count("@mosaic_gpu_v2") == kernels


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "size"), [(1, 4096), (3, 576), (64, 5120), (256, 8192)])
def test_on_a_gpu_it_stores_what_the_reference_stores(tokens, size, dtype):
    given = (*arrays(tokens, size, dtype, scale=3.0), jnp.int32(LAYER))
    total, normed = (np.asarray(a) for a in add_rms_norm_reference(*given, eps=EPS))
    found = jax.jit(partial(add_rms_norm, eps=EPS, implementation="mosaic"))(*given)
    assert np.array_equal(np.asarray(found[0]), total)
    apart = steps_apart(np.asarray(found[1]), normed)
    assert apart.max() <= 2
    assert np.mean(apart > 0) < 2e-3
