"""On a GPU: every real shape and every kernel against float64, and that a token's bits don't depend on its batch.

Compiling is what takes the time: all programs are under way, side by side, before the first one is run, and equal kernels of a
matrix share a program. Outputs are written over NaNs: the program is given them (donated), and freed memory is full of them.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.int4_matmul.after_norm import norm_int4_matmul_tiles
from pallas_kernels.int4_matmul.api import int4_matmul_tiles
from pallas_kernels.int4_matmul.cases import CASES, Int4MatmulCase
from pallas_kernels.int4_matmul.choice import MOST_WARP_TOKENS, Config, kernel_of
from pallas_kernels.int4_matmul.mosaic_stream import StreamConfig
from pallas_kernels.int4_matmul.mosaic_wgmma import WgmmaConfig
from pallas_kernels.int4_matmul.tiles import groups_per_tile, padded, to_tiles
from pallas_kernels.rms_norm.reference import add_rms_norm_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU"),
]
TOKENS = {"bfloat16": (1, 3, 17, 65, 200), "float16": (3, 65)}
"""Of each product; float16 differs in its constants alone."""
MOST_TOKENS = 200
TOLERANCE = {"bfloat16": 4e-3, "float16": 5e-4}
GATED_TOLERANCE = {"bfloat16": 6e-3, "float16": 1e-3}
"""Past wgmma gate and up are rounded before they are multiplied, and each has the error of a product (the reference: 4.9e-3)."""
LAYER = 1
NAN = np.int32(-1)
"""All bits set: a NaN of every float, two of them for 16 bits."""
GROUPS = tuple(
    Int4MatmulCase("groups", f"{g}-of-{k}", k, 960, g) for g, k in ((32, 1536), (64, 1536), (1536, 1536), (576, 576))
)
"""What CASES doesn't have: groups of 32, and one group for all inputs, which are whole tiles or not."""
CUTS = (
    (256, Int4MatmulCase("cut", "shared", 1024, 28672), StreamConfig(2, 256, 3, 1, 132)),
    (256, Int4MatmulCase("cut", "shared-pairs", 1024, 28672), StreamConfig(2, 256, 3, 2, 66)),
    (200, Int4MatmulCase("cut", "few-share", 1024, 28672), StreamConfig(2, 128, 5, 2, 40)),
    (300, Int4MatmulCase("cut", "142-tiles", 640, 9040), StreamConfig(2, 256, 3, 1, 132)),  # the last is not full
    (65, Int4MatmulCase("cut", "133-tiles", 256, 8464, 64), StreamConfig(1, 72, 4, 1, 132)),  # one, two steps
    (
        700,
        Int4MatmulCase("cut", "odd-outputs", 1152, 3264, 32),
        StreamConfig(2, 256, 2, 2),
    ),  # the last pair has one block
    (17, Int4MatmulCase("cut", "one-step-each", 4096, 64), StreamConfig(1, 32, 6, 2, 66)),
    (8, Int4MatmulCase("cut", "one-step", 128, 40), StreamConfig(1, 16, 3, 2)),
    (33, Int4MatmulCase("cut", "four-rows", 1024, 8192), StreamConfig(4, 64, 4, 2, 66)),
    (256, Int4MatmulCase("cut", "two-in-flight", 2048, 8192), WgmmaConfig(1, 256, 3, in_flight=2)),
    (64, Int4MatmulCase("cut", "split-two-in-flight", 4096, 4096), WgmmaConfig(4, 64, 4, 4, in_flight=2)),
    (200, Int4MatmulCase("cut", "groups-of-32", 1152, 960, 32), WgmmaConfig(2, 128, 5, in_flight=2)),
    (17, Int4MatmulCase("cut", "groups-of-64", 384, 576, 64), WgmmaConfig(3, 32, 2, in_flight=2)),
    (8, Int4MatmulCase("cut", "one-block", 128, 64), WgmmaConfig(1, 8, 3, in_flight=2)),
    (8, Int4MatmulCase("cut", "two-blocks", 256, 40), WgmmaConfig(1, 8, 3, in_flight=2)),
)
"""What tuning may find and no rule says."""
REPEATS = 20


@dataclass(frozen=True, slots=True)
class Job:
    """One matrix, and which of its products a program computes."""

    case: Int4MatmulCase
    dtype: str
    gated: bool = False
    invariant: bool = False

    @property
    def width(self) -> int:
        """Columns of a result."""
        return self.case.n // 2 if self.gated else self.case.n

    def __str__(self) -> str:
        marks = ("-gated" if self.gated else "") + ("-invariant" if self.invariant else "")
        return f"{self.case.model}-{self.case.name}-{self.dtype}{marks}"


EXACT_JOBS = [Job(case, dtype) for case in (*GROUPS, *CASES) for dtype in TOLERANCE]
EXACT_JOBS += [Job(case, dtype, gated=True) for case in CASES if case.name == "gate_up" for dtype in TOLERANCE]
NORM_JOBS = [
    (m, Job(case, dtype, gated=case.name == "gate_up"))
    for case in CASES
    for dtype in TOLERANCE
    for m in (1, 2)
    if case.name in ("qkv", "gate_up") and case.k % 128 == 0 and (m == 1 or dtype == "bfloat16")
]
INVARIANT_JOBS = [Job(case, "bfloat16", invariant=True) for case in CASES if case.model == "llama-3-8b"]


def products(job: Job) -> dict[str, tuple[int, Callable]]:
    """Tokens and the function of (x, words, meta) for each product of a job, by name."""
    kernel = partial(
        int4_matmul_tiles, layer=LAYER, outputs=job.case.n, group_size=job.case.group_size, gated=job.gated
    )
    if job.invariant:
        return {f"{m} tokens": (m, partial(kernel, invariant=True)) for m in (*TOKENS[job.dtype], 5, 64)}
    found = {}
    for m in TOKENS[job.dtype]:
        for name in ("default", "wgmma", "stream", *(["warp"] if m <= MOST_WARP_TOKENS else [])):
            implementation = None if name == "default" else name
            found[f"{m} tokens, {name}"] = (m, partial(kernel, implementation=implementation))
    return found


def described(case: Int4MatmulCase, dtype: str, tokens: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """x, words and meta."""
    outputs, inputs = padded(case.n, case.k)
    tiles = (LAYER + 1, outputs // 16, inputs // 128)
    shapes = ((*tiles, 256), (*tiles, groups_per_tile(case.group_size), 16))
    return jax.ShapeDtypeStruct((tokens, case.k), dtype), *(jax.ShapeDtypeStruct(s, jnp.int32) for s in shapes)


def compiled(job: Job) -> tuple[jax.stages.Compiled, jax.stages.Compiled]:
    """The program of all products of a job, and that of its tiles."""
    functions = products(job)

    def run(poison, x, words, meta):
        del poison  # its memory becomes the results'
        return {name: function(x[:m], words, meta) for name, (m, function) in functions.items()}

    poison = {name: jax.ShapeDtypeStruct((m, job.width), job.dtype) for name, (m, _) in functions.items()}
    program = jax.jit(run, donate_argnums=0, keep_unused=True)
    return program.lower(poison, *described(job.case, job.dtype, MOST_TOKENS)).compile(), compiled_tiles(
        job.case, job.dtype
    )


def compiled_tiles(case: Int4MatmulCase, dtype: str) -> jax.stages.Compiled:
    """Rows to a stack of layers, of which LAYER is the matrix."""

    @jax.jit
    def tile(*rows):
        words, meta = to_tiles(*rows, group_size=case.group_size)
        return jnp.stack([words ^ 0x55, words]), jnp.stack([meta, meta])

    groups = (case.k // case.group_size, case.n)
    rows = (((case.n, case.k // 2), "uint8"), (groups, dtype), (groups, "uint8"))
    return tile.lower(*(jax.ShapeDtypeStruct(*row) for row in rows)).compile()


@pytest.fixture(scope="module")
def programs() -> Iterator[dict[Any, Future]]:
    pool = ThreadPoolExecutor(os.cpu_count())
    # Small ones first: who asks for them alone (-k cut) doesn't wait for the others.
    found: dict[Any, Future] = {cut: pool.submit(compiled_cut, *cut) for cut in CUTS}
    found |= {job: pool.submit(compiled_norm, *job) for job in NORM_JOBS}
    found |= {job: pool.submit(compiled, job) for job in (*EXACT_JOBS, *INVARIANT_JOBS)}
    yield found
    pool.shutdown(cancel_futures=True)


def compiled_cut(m: int, case: Int4MatmulCase, config: Config) -> tuple[jax.stages.Compiled, jax.stages.Compiled]:
    """The program of one product cut as ``config`` says, and that of its tiles."""

    def run(poison, x, words, meta):
        del poison
        return kernel_of(config)(x, words, meta, jnp.full(1, LAYER, jnp.int32), outputs=case.n)

    poison = jax.ShapeDtypeStruct((m, case.n), jnp.bfloat16)
    program = jax.jit(run, donate_argnums=0, keep_unused=True).lower(poison, *described(case, "bfloat16", m)).compile()
    return program, compiled_tiles(case, "bfloat16")


def compiled_norm(m: int, job: Job) -> tuple[jax.stages.Compiled, jax.stages.Compiled]:
    """The program of one product with the norm before it, and that of its tiles."""

    def run(poison, x, delta, gain, words, meta):
        del poison
        return norm_int4_matmul_tiles(
            x, delta, gain, words, meta, LAYER,
            eps=1e-5, outputs=job.case.n, group_size=job.case.group_size, gated=job.gated,
        )  # fmt: skip

    x, words, meta = described(job.case, job.dtype, m)
    gain = jax.ShapeDtypeStruct((LAYER + 1, job.case.k), job.dtype)
    lowered = jax.jit(run, donate_argnums=0, keep_unused=True).lower(
        (x, jax.ShapeDtypeStruct((m, job.width), job.dtype)), x, x, gain, words, meta
    )
    assert "norm_int4_matmul_warp" in lowered.as_text()
    return lowered.compile(), compiled_tiles(job.case, job.dtype)


def random_rows(case: Int4MatmulCase, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A fresh matrix, rows of packed nibbles, scales and zero points; these at both ends of their range and inside."""
    rng = np.random.default_rng()
    groups = (case.k // case.group_size, case.n)
    packed = rng.integers(0, 256, (case.n, case.k // 2), dtype=np.uint8)
    scale = rng.uniform(0.01, 0.03, groups).astype(jnp.dtype(dtype))
    return packed, scale, rng.choice(np.array([0, 15, 5, 8], np.uint8), groups)


def exact_product(x: np.ndarray, rows: tuple[np.ndarray, np.ndarray, np.ndarray], group_size: int) -> np.ndarray:
    """``x @ w.T`` in float64, 4096 outputs at a time."""
    packed, scale, zero = rows
    x = x.astype(np.float64)
    found = []
    for start in range(0, packed.shape[0], 4096):
        part = packed[start : start + 4096]
        q = np.stack([part & 0xF, part >> 4], axis=-1).reshape(part.shape[0], -1, group_size)
        zeros, scales = (a[:, start : start + 4096].T[..., None].astype(np.float32) for a in (zero, scale))
        w = (q.astype(np.float32) - zeros) * scales  # exact: 5 bits times at most 11
        found.append(x @ w.reshape(part.shape[0], -1).astype(np.float64).T)
    return np.concatenate(found, axis=1)


def gate(exact: np.ndarray) -> np.ndarray:
    """Of turns, 8 outputs of a gate and 8 of what it gates."""
    turns = exact.reshape(exact.shape[0], -1, 2, 8)
    return (turns[:, :, 0] / (1 + np.exp(-turns[:, :, 0])) * turns[:, :, 1]).reshape(exact.shape[0], -1)


def nans(shape: tuple[int, ...], dtype: str) -> jax.Array:
    return jax.device_put(np.full(shape, np.nan, jnp.dtype(dtype)))


def fill_free_memory() -> None:
    """Leave NaNs in memory that the next program may get for what lies between its kernels."""
    jax.block_until_ready([jnp.full(1 << bits, NAN) for bits in range(12, 29, 2)])


def relative_error(out: jax.Array | np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(out, np.float64) - exact) / np.linalg.norm(exact))


def run_job(job: Job, program: Future) -> tuple[dict[str, jax.Array], np.ndarray]:
    """Every product of a job, and the exact one of the most tokens."""
    run, tile = program.result()
    rows = random_rows(job.case, job.dtype)
    words, meta = tile(*rows)
    x = np.random.default_rng().normal(size=(MOST_TOKENS, job.case.k)).astype(jnp.dtype(job.dtype))
    poison = {name: nans((m, job.width), job.dtype) for name, (m, _) in products(job).items()}
    fill_free_memory()
    out = run(poison, x, words, meta)
    exact = exact_product(x, rows, job.case.group_size)
    return out, gate(exact) if job.gated else exact


@pytest.mark.parametrize("job", EXACT_JOBS, ids=str)
def test_every_kernel_is_right(job, programs):
    out, exact = run_job(job, programs[job])
    errors = {name: relative_error(out[name], exact[:m]) for name, (m, _) in products(job).items()}
    for name, error in errors.items():
        limit = GATED_TOLERANCE if job.gated and not name.endswith("warp") else TOLERANCE
        assert error <= limit[job.dtype], (name, errors)


@pytest.mark.parametrize("job", INVARIANT_JOBS, ids=str)
def test_an_invariant_product_does_not_depend_on_the_batch(job, programs):
    out, exact = run_job(job, programs[job])
    bits = {name: np.asarray(value).view(np.uint16) for name, value in out.items()}
    whole = bits[f"{MOST_TOKENS} tokens"]
    assert relative_error(out[f"{MOST_TOKENS} tokens"], exact) <= TOLERANCE["bfloat16"]
    for name, found in bits.items():
        np.testing.assert_array_equal(found, whole[: len(found)], err_msg=name)


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: cut[1].name)
def test_every_kind_of_cut_is_right(cut, programs):
    m, case, config = cut
    run, tile = programs[cut].result()
    rows = random_rows(case, "bfloat16")
    words, meta = tile(*rows)
    x = np.random.default_rng().normal(size=(m, case.k)).astype(jnp.bfloat16)
    exact, first = exact_product(x, rows, case.group_size), None
    for _ in range(REPEATS if isinstance(config, StreamConfig) else 1):
        poison = nans((m, case.n), "bfloat16")
        fill_free_memory()
        out = np.asarray(run(poison, x, words, meta))
        first = out if first is None else first
        np.testing.assert_array_equal(out.view(np.uint16), first.view(np.uint16))
    assert relative_error(first, exact) <= TOLERANCE["bfloat16"]


@pytest.mark.parametrize(("m", "job"), NORM_JOBS, ids=str)
def test_the_norm_before_it_is_part_of_it(m, job, programs):
    run, tile = programs[m, job].result()
    rows = random_rows(job.case, job.dtype)
    words, meta = tile(*rows)
    rng = np.random.default_rng()
    x, delta = (rng.normal(size=(m, job.case.k)).astype(jnp.dtype(job.dtype)) for _ in range(2))
    gain = rng.normal(size=(LAYER + 1, job.case.k)).astype(jnp.dtype(job.dtype))
    expected, normed = add_rms_norm_reference(*map(jnp.asarray, (x, delta, gain)), jnp.int32(LAYER), eps=1e-5)
    exact = exact_product(np.asarray(normed), rows, job.case.group_size)
    first = None
    for _ in range(REPEATS):
        fill_free_memory()
        poison = nans((m, job.case.k), job.dtype), nans((m, job.width), job.dtype)
        total, out = run(poison, x, delta, gain, words, meta)
        np.testing.assert_array_equal(total, expected)
        assert relative_error(out, gate(exact) if job.gated else exact) <= TOLERANCE[job.dtype]
        first = out if first is None else first
        np.testing.assert_array_equal(out, first)
