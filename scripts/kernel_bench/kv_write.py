"""The KV write: its kernel beside what XLA makes of the reference (quantization and scatters).

Times are of kernels (CUPTI), all of one call added up; the pools are donated. "temp bytes" are those of the compiled program: a
copy of the pool would show there.
"""

import argparse
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.mosaic.gpu import profiler
from kernel_bench.report import Row, show

from pallas_kernels.kv_write.api import IMPLEMENTATIONS, kv_write

LAYERS, PAGES = 4, 2048


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--page-size", type=int, default=64)
    parser.add_argument("--bits", default="16,8,4", help="with commas")
    parser.add_argument("--tokens", default="1,64,256,2048", help="new tokens of a step, with commas")


def main(options: argparse.Namespace) -> list[Row]:
    """Time, compare, print."""
    rows: list[Row] = []
    for bits in (int(b) for b in options.bits.split(",")):
        for tokens in (int(t) for t in options.tokens.split(",")):
            results = {name: run(options, bits, tokens, name) for name in IMPLEMENTATIONS}
            differ = float(np.mean(results["mosaic"]["values"] != results["reference"]["values"]))
            row = Row({"bits": bits, "tokens": tokens, "differing values": differ, "ok": differ < 0.02})
            for name, result in results.items():
                row |= {
                    f"{name} us": result["us"],
                    f"{name} kernels": result["kernels"],
                    f"{name} temp bytes": result["temp"],
                }
            rows.append(row)
            show(row)
    return rows


def run(options: argparse.Namespace, bits: int, tokens: int, implementation: str) -> dict[str, Any]:
    """Median of five calls, and what the first stored."""
    lead = (LAYERS, PAGES, options.kv_heads, options.page_size)
    pages = jnp.zeros((*lead, options.head_dim * min(bits, 8) // 8), jnp.bfloat16 if bits == 16 else jnp.uint8)
    pairs = None if bits == 16 else jnp.zeros((*lead, 2), jnp.float16)
    new = jax.random.normal(jax.random.key(0), (tokens, options.kv_heads, options.head_dim), jnp.bfloat16)
    places = np.random.default_rng(0).permutation(PAGES * options.page_size)[:tokens].astype(np.int32)
    rest = new, jnp.int32(1), jnp.asarray(places // options.page_size), jnp.asarray(places % options.page_size)
    write = jax.jit(partial(kv_write, bits=bits, implementation=implementation), donate_argnums=(0, 1))
    compiled = write.lower(pages, pairs, *rest).compile()
    memory: Any = compiled.memory_analysis()
    pools = compiled(pages, pairs, *rest)
    stored = np.asarray(pools[0])
    times, kernels = [], 0
    for _ in range(5):
        measured: Any = profiler.Cupti(finalize=False).measure(compiled, aggregate=False)
        pools, seen = measured(*pools, *rest)
        times.append(sum(time for _, time in seen) * 1e3)
        kernels = len(seen)
    return {"us": median(times), "kernels": kernels, "temp": memory.temp_size_in_bytes, "values": stored}


def roofline(rows: list[Row], path: str) -> None:
    """Plot microseconds over tokens."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for bits in dict.fromkeys(row["bits"] for row in rows):
        for name, style in zip(IMPLEMENTATIONS, ("-", "--"), strict=True):
            points = [(row["tokens"], row[f"{name} us"]) for row in rows if row["bits"] == bits]
            axes.loglog(*zip(*points, strict=True), style, marker="o", label=f"{bits} bits, {name}")
    axes.set(xlabel="tokens", ylabel="us", title=f"KV write, {jax.devices()[0].device_kind}, jax {jax.__version__}")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120, bbox_inches="tight")
