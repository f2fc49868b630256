"""The int4 matmul beside cuBLAS on dense bfloat16 (XLA) and torch's ``_weight_int4pack_mm`` (tinygemm).

Every shape is first checked against float64 with fresh random inputs. Times are of kernels (CUPTI), all of one call added up, the
layer changing from call to call so that the L2 cache holds nothing of use. GB/s counts what is stored (words, meta) plus x and the
result; "floor" is that over the copy bandwidth of the same run. Rows come one by one, those of a whole layer first.
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter_ns
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from kernel_bench.report import Row, show

from pallas_kernels.int4_matmul import choice
from pallas_kernels.int4_matmul.api import int4_matmul_tiles
from pallas_kernels.int4_matmul.cases import CASES, random_tiles
from pallas_kernels.int4_matmul.reference import dequantize
from pallas_kernels.int4_matmul.tiles import BLOCK, from_tiles, groups_per_tile, padded
from pallas_kernels.timing import copy_bandwidth, microseconds

ANCHORS = ((4096, 4096), (4096, 6144), (4096, 28672), (14336, 4096), (2048, 8192))
LLAMA_3_8B_LAYER = {"qkv": (4096, 6144), "out": (4096, 4096), "gate_up": (4096, 28672), "down": (14336, 4096)}
"""Inputs and outputs; attention, which isn't there, takes the first and feeds the second; gate_up is gated."""
LAYERS = 16
TOLERANCE = 4e-3
GATED_TOLERANCE = 1e-2
"""Where XLA applies the gate, gate and up are bfloat16 before it, and so are its steps."""
LAYER_TOLERANCE = 2e-2
"""Of three matmuls in a row, each of rounded inputs, with a gate between, which doubles relative errors."""
CALLS = 24
"""Layers of a stack, one call each; the smallest shape's hold 200 MB, four times the L2 cache."""
CHECKED_TOKENS = 256
"""Of more tokens so many are compared, the first and the last among them."""


@dataclass(frozen=True, slots=True)
class Job:
    """One shape and number of tokens."""

    m: int
    k: int
    n: int
    group_size: int = 128
    gated: bool = False
    invariant: bool = False

    @property
    def tolerance(self) -> float:
        """Relative error that is no fault."""
        return GATED_TOLERANCE if self.gated else TOLERANCE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--tokens", default="1,16,64,256", help="M, with commas")
    parser.add_argument("--shapes", help="KxN, with commas, instead of those that peers were timed on; empty for none")
    parser.add_argument("--all-cases", action="store_true", help="every case of cases.py")
    parser.add_argument(
        "--gated", action="store_true", help="also the gated form, silu(gate) * up, of matrices with 28672 outputs"
    )
    parser.add_argument(
        "--invariant", action="store_true", help="the kernel whose bits don't depend on the batch, and what it costs"
    )
    parser.add_argument(
        "--layer", action="store_true", help="also the four matmuls of each Llama-3-8B layer, in one program"
    )
    parser.add_argument("--peers", action="store_true", help="cuBLAS, and tinygemm where torch is installed")


def main(options: argparse.Namespace) -> Iterator[Row]:
    """Check, time, print."""
    tokens = [int(m) for m in options.tokens.split(",")]
    bandwidth = copy_bandwidth()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, copy {bandwidth:,.0f} GB/s", flush=True)
    if options.layer:
        yield from layer_rows(tokens, bandwidth)
    for k, n, group_size, gated in shapes(options):
        jobs = [Job(m, k, n, group_size, gated, options.invariant) for m in tokens]
        yield from measure(jobs, bandwidth, with_peers=options.peers)


def shapes(options: argparse.Namespace) -> list[tuple[int, int, int, bool]]:
    """Inputs, outputs, group size and gated of the matrices that the command line names."""
    if options.all_cases:
        found = [(case.k, case.n, case.group_size, False) for case in CASES]
    elif options.shapes is None:
        found = [(k, n, 128, False) for k, n in ANCHORS]
    else:
        pairs = [text.split("x") for text in options.shapes.split(",") if text]
        found = [(int(k), int(n), 128, False) for k, n in pairs]
    if options.gated:
        found += [(k, n, g, True) for k, n, g, _ in found if n == 28672]
    return found


def layer_rows(tokens: list[int], bandwidth: float) -> Iterator[Row]:
    """qkv; out, gated gate_up and down, each fed by the one before: LAYERS times, with other weights; for one layer.

    Its wall time is that of the whole program on a device that does nothing else, with the gaps between kernels.
    """
    jobs = {name: Job(1, k, n, gated=name == "gate_up") for name, (k, n) in LLAMA_3_8B_LAYER.items()}
    stacks = {name: stack_of(LAYERS, job) for name, job in jobs.items()}
    layer = int(np.random.default_rng().integers(LAYERS))
    matrices = {name: dense_layer(job, stacks[name], layer) for name, job in jobs.items()}
    size = sum(words.nbytes + meta.nbytes for words, meta in stacks.values()) / LAYERS

    def layers(x, attended, stacks):
        results = []
        for i in range(LAYERS):
            h = attended
            for name in ("out", "gate_up", "down"):
                h = _call(jobs[name], h, stacks[name], i)
            results.append((_call(jobs["qkv"], x, stacks["qkv"], i), h))
        return results

    for m in tokens:
        x, attended = (random_x(m, jobs[name].k) for name in ("qkv", "out"))
        program = jax.jit(layers).lower(x, attended, stacks).compile()
        exact = np.asarray(attended, np.float64)
        for name in ("out", "gate_up", "down"):
            exact = exact_product(jobs[name], exact, matrices[name])
        qkv, h = program(x, attended, stacks)[layer]
        exact_qkv = exact_product(jobs["qkv"], np.asarray(x, np.float64), matrices["qkv"])
        errors = {"error": relative_error(h, exact), "error of qkv": relative_error(qkv, exact_qkv)}
        time = microseconds(program, LAYERS, x, attended, stacks)
        wall = _wall_microseconds(program, x, attended, stacks) / LAYERS
        operations = sum(2 * m * job.k * job.n for job in jobs.values())
        yield _shown({"K x N": "Llama-3-8B layer", "M": m, "us": time, "wall us": wall, "GB/s": size / time / 1e3,
                      "% of copy": 100 * size / time / 1e3 / bandwidth, "floor us": size / bandwidth / 1e3,
                      "TFLOP/s": operations / time / 1e6, **errors,
                      "ok": errors["error"] <= LAYER_TOLERANCE and errors["error of qkv"] <= TOLERANCE})  # fmt: skip


def _wall_microseconds(program: jax.stages.Compiled, *arguments: Any, runs: int = 10) -> float:
    jax.block_until_ready(program(*arguments))
    begun = perf_counter_ns()
    results = [program(*arguments) for _ in range(runs)]
    jax.block_until_ready(results)
    return (perf_counter_ns() - begun) / 1e3 / runs


def _shown(columns: dict[str, Any]) -> Row:
    row = Row(columns)
    show(row)
    return row


def measure(jobs: list[Job], bandwidth: float, *, with_peers: bool) -> Iterator[Row]:
    """One matrix with several numbers of tokens; programs are compiled side by side."""
    first = jobs[0]
    stack = stack_of(CALLS, first)
    layer = int(np.random.default_rng().integers(CALLS))
    matrix = dense_layer(first, stack, layer)
    dense = [
        jax.random.normal(jax.random.key(i), (first.n, first.k), jnp.bfloat16) for i in range(4 if with_peers else 0)
    ]
    all_x = random_x(max(job.m for job in jobs), first.k)

    def prepare(job: Job):
        x = all_x[: job.m]
        programs = {"own": _compiled(job, x, stack)}
        if job.invariant:
            programs["default"] = _compiled(replace(job, invariant=False), x, stack)
        if dense:
            cublas = jax.jit(lambda x, weights: [_dot(x, w) for w in weights])
            programs["cublas"] = cublas.lower(x, dense).compile()
        return x, programs

    with ThreadPoolExecutor() as pool:
        prepared = list(pool.map(prepare, jobs))  # all of it: nothing else may run while kernels are timed
    largest = max(zip(jobs, prepared, strict=True), key=lambda pair: pair[0].m)
    whole = largest[1][1]["own"](largest[1][0], *stack)[layer] if first.invariant else None
    for job, (x, programs) in zip(jobs, prepared, strict=True):
        out, others = programs["own"](x, *stack)[layer], {}
        rows = np.unique(np.linspace(0, job.m - 1, min(job.m, CHECKED_TOKENS)).astype(int))
        exact = exact_product(job, np.asarray(x, np.float64)[rows], matrix)
        found = relative_error(np.asarray(out)[rows], exact)
        time = microseconds(programs["own"], CALLS, x, *stack)
        if whole is not None:
            others["default us"] = microseconds(programs["default"], CALLS, x, *stack)
            others["cost %"] = 100 * (time / others["default us"] - 1)
            others["same bits"] = same_bits(out, whole)
        if dense:
            others["cuBLAS bf16 us"] = microseconds(programs["cublas"], len(dense), x, dense)
            others |= tinygemm(job)
        yield _shown(columns(job, found, time, bandwidth, others))


def same_bits(out: jax.Array, whole: jax.Array) -> bool:
    """Are these the first rows of a larger batch?"""
    found, expected = (np.asarray(a).view(np.uint16) for a in (out, whole[: len(out)]))
    return bool(np.array_equal(found, expected))


def _compiled(job: Job, x: jax.Array, stack: tuple[jax.Array, jax.Array]) -> jax.stages.Compiled:
    return jax.jit(lambda x, *tiles: [_call(job, x, tiles, i) for i in range(CALLS)]).lower(x, *stack).compile()


def _dot(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32).astype(x.dtype)


def columns(job: Job, found: float, time: float, bandwidth: float, others: dict[str, Any]) -> dict[str, Any]:
    """What is reported of a shape."""
    outputs, inputs = padded(job.n, job.k)
    groups = inputs // BLOCK * groups_per_tile(job.group_size)
    size = outputs * inputs // 2 + 4 * groups * outputs + 2 * job.m * (job.k + job.n // (1 + job.gated))
    shape = choice.Shape(job.m, job.k, job.n, job.group_size)
    config = choice.invariant_config(shape) if job.invariant else choice.choose(shape)
    return {"K x N": f"{job.k} x {job.n}{' gated' if job.gated else ''}", "M": job.m, "us": time, "GB/s": size / time / 1e3,
            "% of copy": 100 * size / time / 1e3 / bandwidth, "floor us": size / bandwidth / 1e3,
            "TFLOP/s": 2 * job.m * job.k * job.n / time / 1e6, "error": found,
            "ok": found <= job.tolerance and others.get("same bits", True), **others, "kernel": str(config)}  # fmt: skip


def random_x(m: int, k: int) -> jax.Array:
    """Fresh activations of every run."""
    return jnp.asarray(np.random.default_rng().normal(size=(m, k)), jnp.bfloat16)


def stack_of(layers: int, job: Job) -> tuple[jax.Array, jax.Array]:
    """Words and meta of so many layers."""
    return jax.jit(random_tiles, static_argnums=(0, 1, 2, 3))(layers, job.n, job.k, job.group_size)


def dense_layer(job: Job, stack: tuple[jax.Array, jax.Array], layer: int) -> np.ndarray:
    """The exact matrix of a layer, float32 [N, K]: 5 bits times the 8 of a bfloat16 scale."""

    @jax.jit
    def restore(words, meta):
        size = {"outputs": job.n, "inputs": job.k, "group_size": job.group_size, "dtype": jnp.bfloat16}
        return dequantize(*from_tiles(words, meta, **size), group_size=job.group_size)

    return np.asarray(restore(*(a[layer] for a in stack)))


def exact_product(job: Job, x: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """``x @ matrix.T`` in float64 on the host, gated if the job is; 4096 outputs at a time."""
    parts = [x @ matrix[i : i + 4096].astype(np.float64).T for i in range(0, len(matrix), 4096)]
    exact = np.concatenate(parts, axis=1)
    if job.gated:
        turns = exact.reshape(len(x), job.n // 16, 2, 8)
        gates, ups = turns[:, :, 0], turns[:, :, 1]
        exact = (gates / (1 + np.exp(-np.maximum(gates, -700)))) * ups
    return exact.reshape(len(x), -1)


def relative_error(out: Any, exact: np.ndarray) -> float:
    """``norm(out - exact) / norm(exact)``."""
    return float(np.linalg.norm(np.asarray(out, np.float64) - exact) / np.linalg.norm(exact))


def _call(job: Job, x: jax.Array, tiles: Any, layer: int) -> jax.Array:
    words, meta = tiles
    return int4_matmul_tiles(
        x, words, meta, layer, outputs=job.n, group_size=job.group_size, gated=job.gated, invariant=job.invariant
    )


def tinygemm(job: Job) -> dict[str, float]:
    """Microseconds of torch's ``_weight_int4pack_mm`` at the same shape, launches included; {} without torch.

    Its results aren't compared: it is torch's own, and its weights are as random as the rest.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {}
    if job.k % 128 or job.n % 8 or job.group_size not in (32, 64, 128, 256):
        return {}  # what it can't take
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
