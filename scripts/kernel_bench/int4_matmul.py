"""The int4 matmul beside cuBLAS on dense bfloat16 (XLA) and torch's ``_weight_int4pack_mm`` (tinygemm).

Every shape is first checked against float64 with fresh random inputs. Times are of kernels (CUPTI), all of one call added up, the
layer changing from call to call so that the L2 cache holds nothing of use. GB/s counts what is stored (words, meta) plus x and the
result; "floor" is that over the copy bandwidth of the same run.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from time import time_ns
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from kernel_bench.report import Row, show

from pallas_kernels.int4_matmul import choice
from pallas_kernels.int4_matmul.api import int4_matmul_tiles
from pallas_kernels.int4_matmul.cases import CASES, Int4MatmulCase, random_tiles
from pallas_kernels.int4_matmul.reference import dequantize
from pallas_kernels.int4_matmul.tiles import BLOCK, from_tiles, groups_per_tile, padded
from pallas_kernels.timing import copy_bandwidth, microseconds

ANCHORS = ((4096, 4096), (4096, 6144), (4096, 28672), (14336, 4096), (2048, 8192))
LLAMA_3_8B_LAYER = ((4096, 6144, False), (4096, 4096, False), (4096, 28672, True), (14336, 4096, False))
"""Inputs, outputs, gated; the second reads the first 4096 outputs of the first."""
LAYERS = 16
TOLERANCE = 4e-3
GATED_TOLERANCE = 1e-2
"""Where XLA applies the gate, gate and up are bfloat16 before it, and so are its steps."""
CALLS = 24
"""Layers of a stack, one call each; the smallest shape's hold 200 MB, four times the L2 cache."""


@dataclass(frozen=True, slots=True)
class Job:
    """One shape and number of tokens."""

    m: int
    k: int
    n: int
    group_size: int
    gated: bool
    invariant: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--tokens", default="1,16,64,256", help="M, with commas")
    parser.add_argument(
        "--all-cases", action="store_true", help="every case of cases.py, not only the shapes that peers were timed on"
    )
    parser.add_argument(
        "--gated", action="store_true", help="also the gated form, silu(gate) * up, of matrices with 28672 outputs"
    )
    parser.add_argument("--invariant", action="store_true", help="the kernel whose bits don't depend on the batch")
    parser.add_argument(
        "--layer", action="store_true", help="also the four matmuls of each Llama-3-8B layer, in one program"
    )
    parser.add_argument("--peers", action="store_true", help="cuBLAS, and tinygemm where torch is installed")


def main(options: argparse.Namespace) -> list[Row]:
    """Check, time, print."""
    cases = CASES if options.all_cases else [Int4MatmulCase("anchor", "", k, n) for k, n in ANCHORS]
    shapes = [(case.k, case.n, case.group_size, False) for case in cases]
    if options.gated:
        shapes += [(k, n, g, True) for k, n, g, _ in shapes if n == 28672]
    bandwidth = copy_bandwidth()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, copy {bandwidth:,.0f} GB/s", flush=True)
    rows: list[Row] = []
    for k, n, group_size, gated in shapes:
        jobs = [Job(int(m), k, n, group_size, gated, options.invariant) for m in options.tokens.split(",")]
        rows += measure(jobs, bandwidth, with_peers=options.peers)
    if options.layer:
        rows += [layer_row(int(m), bandwidth) for m in options.tokens.split(",")]
    return rows


def layer_row(m: int, bandwidth: float) -> Row:
    """qkv, out, gated gate_up and down of LAYERS layers one after the other, each fed by the one before; for one layer.

    Its wall time is that of the whole program on a device that does nothing else, with the gaps between kernels.
    """
    jobs = [Job(m, k, n, 128, gated) for k, n, gated in LLAMA_3_8B_LAYER]
    stacks = [random_tiles(LAYERS, job.n, job.k, job.group_size) for job in jobs]

    def layers(x, stacks):
        for layer in range(LAYERS):
            for job, stack in zip(jobs, stacks, strict=True):
                x = _call(job, x[:, : job.k], stack, layer)
        return x

    program, x = jax.jit(layers).lower(random_x(jobs[0]), stacks).compile(), random_x(jobs[0])
    time = microseconds(program, LAYERS, x, stacks)
    begun = time_ns()
    for _ in range(10):
        result = program(x, stacks)
    jax.block_until_ready(result)
    wall = (time_ns() - begun) / 1e4 / LAYERS
    size = sum(stack[0].nbytes + stack[1].nbytes for stack in stacks) / LAYERS
    found = Row({"K x N": "Llama-3-8B layer", "M": m, "us": time, "wall us": wall, "GB/s": size / time / 1e3,
                 "% of copy": 100 * size / time / 1e3 / bandwidth, "floor us": size / bandwidth / 1e3,
                 "TFLOP/s": sum(2 * m * job.k * job.n for job in jobs) / time / 1e6})  # fmt: skip
    show(found)
    return found


def measure(jobs: list[Job], bandwidth: float, *, with_peers: bool) -> list[Row]:
    """One matrix with several numbers of tokens; programs are compiled side by side."""
    first = jobs[0]
    stack = random_tiles(CALLS, first.n, first.k, first.group_size)
    layer = int(np.random.default_rng().integers(CALLS))
    matrix = dense_layer(first, stack, layer)
    dense = [
        jax.random.normal(jax.random.key(i), (first.n, first.k), jnp.bfloat16) for i in range(4 if with_peers else 0)
    ]

    def prepare(job: Job):
        x = random_x(job)
        found = error(job, x, stack, layer, matrix)
        own = jax.jit(lambda x, *tiles: [_call(job, x, tiles, i) for i in range(CALLS)]).lower(x, *stack).compile()
        cublas = jax.jit(lambda x, weights: [_dot(x, w) for w in weights]).lower(x, dense).compile() if dense else None
        return x, found, own, cublas

    rows = []
    with ThreadPoolExecutor() as pool:
        prepared = list(pool.map(prepare, jobs))  # all of it: nothing else may run while kernels are timed
    for job, (x, found, own, cublas) in zip(jobs, prepared, strict=True):
        others = {}
        if cublas is not None:
            others["cuBLAS bf16 us"] = microseconds(cublas, len(dense), x, dense)
            others |= tinygemm(job)
        rows.append(row(job, found, microseconds(own, CALLS, x, *stack), bandwidth, others))
        show(rows[-1])
    return rows


def _dot(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32).astype(x.dtype)


def row(job: Job, found: float, time: float, bandwidth: float, others: dict[str, float]) -> Row:
    """What is reported of a shape."""
    outputs, inputs = padded(job.n, job.k)
    groups = inputs // BLOCK * groups_per_tile(job.group_size)
    size = outputs * inputs // 2 + 4 * groups * outputs + 2 * job.m * (job.k + job.n // (1 + job.gated))
    shape = choice.Shape(job.m, job.k, job.n, job.group_size)
    config = choice.invariant_config(shape) if job.invariant else choice.choose(shape, gated=job.gated)
    return Row(
        {"K x N": f"{job.k} x {job.n}{' gated' if job.gated else ''}", "M": job.m, "us": time, "GB/s": size / time / 1e3,
         "% of copy": 100 * size / time / 1e3 / bandwidth, "floor us": size / bandwidth / 1e3,
         "TFLOP/s": 2 * job.m * job.k * job.n / time / 1e6, "error": found,
         "ok": found <= (GATED_TOLERANCE if job.gated else TOLERANCE), **others, "kernel": str(config)}
    )  # fmt: skip


def random_x(job: Job) -> jax.Array:
    """Fresh activations of every run."""
    return jnp.asarray(np.random.default_rng().normal(size=(job.m, job.k)), jnp.bfloat16)


def dense_layer(job: Job, stack: tuple[jax.Array, jax.Array], layer: int) -> jax.Array:
    """The exact matrix of a layer, float64 [N, K]."""

    @jax.jit
    def restore(words, meta):
        size = {"outputs": job.n, "inputs": job.k, "group_size": job.group_size, "dtype": jnp.bfloat16}
        return dequantize(*from_tiles(words, meta, **size), group_size=job.group_size)

    w = restore(*(a[layer] for a in stack))
    with jax.enable_x64(True):
        return jnp.asarray(w, jnp.float64)


def error(job: Job, x: jax.Array, stack: tuple[jax.Array, jax.Array], layer: int, matrix: jax.Array) -> float:
    """``norm(out - exact) / norm(exact)`` of one layer, exact in float64."""
    out = jax.jit(lambda x, *tiles: _call(job, x, tiles, layer))(x, *stack)
    with jax.enable_x64(True):
        exact = jnp.asarray(x, jnp.float64) @ matrix.T
        if job.gated:
            pairs = exact.reshape(job.m, job.n // 32, 2, 16)
            exact = (jax.nn.silu(pairs[:, :, 0]) * pairs[:, :, 1]).reshape(job.m, -1)
        exact = np.asarray(exact)
    return float(np.linalg.norm(np.asarray(out, np.float64) - exact) / np.linalg.norm(exact))


def _call(job: Job, x: jax.Array, tiles: Any, layer: int) -> jax.Array:
    words, meta = tiles
    return int4_matmul_tiles(
        x, words, meta, layer, outputs=job.n, group_size=job.group_size, gated=job.gated, invariant=job.invariant
    )


def tinygemm(job: Job) -> dict[str, float]:
    """Microseconds of torch's ``_weight_int4pack_mm`` at the same shape, launches included; {} without torch."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {}
    weight = torch.randint(0, 255, (job.n, job.k // 2), dtype=torch.uint8, device="cuda")
    packed = [torch._convert_weight_to_int4pack(weight, 8) for _ in range(8)]
    scales = torch.randn(job.k // job.group_size, job.n, 2, dtype=torch.bfloat16, device="cuda")
    x = torch.randn(job.m, job.k, dtype=torch.bfloat16, device="cuda")
    times = []
    for run in range(6):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        for p in packed:
            torch._weight_int4pack_mm(x, p, job.group_size, scales)
        ended.record()
        torch.cuda.synchronize()
        if run:
            times.append(begun.elapsed_time(ended) * 1e3 / len(packed))
    return {"tinygemm us": median(times)}


def roofline(rows: list[Row], path: str) -> None:
    """Plot TFLOP/s over operations a byte, with the run's copy bandwidth as the slope."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for shape in dict.fromkeys(row["K x N"] for row in rows):
        points = [(r["TFLOP/s"] / r["GB/s"] * 1e3, r["TFLOP/s"]) for r in rows if r["K x N"] == shape]
        axes.loglog(*zip(*points, strict=True), marker="o", label=shape)
    slope = median(row["GB/s"] / row["% of copy"] * 100 for row in rows)
    xs = np.geomspace(1, 2000, 50)
    axes.loglog(xs, np.minimum(xs * slope / 1e3, 989), "k--", linewidth=1, label="copy bandwidth, 989 TFLOP/s")
    axes.set(
        xlabel="operations a byte",
        ylabel="TFLOP/s",
        title=f"int4 matmul, {jax.devices()[0].device_kind}, jax {jax.__version__}",
    )
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120, bbox_inches="tight")
