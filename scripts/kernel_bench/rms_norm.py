"""Residual add with norm: its kernel beside what XLA makes of the reference.

A program reads a stack of weights that is larger than the L2 cache, so that this holds none of the layers that it then loops over;
the norm that a layer makes is what the next one adds, so nothing else is computed. Times are of kernels (CUPTI) for one layer.
"kernels" are those that run once a layer, with the microseconds of each by name: one that adds to the loop's counter is among
them, for both implementations.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from kernel_bench.per_layer import layer_times, plot_over_tokens
from kernel_bench.report import Row, show

from pallas_kernels.implementation import IMPLEMENTATIONS
from pallas_kernels.rms_norm.api import add_rms_norm

EPS = 1e-5
STACK_BYTES = 2**28
"""Of weights, five times the L2 cache; the layers looped over are the first ones."""
LAYERS = 128
"""That a program loops over."""
TOLERANCE = 1e-2
"""Relative to the largest value: three roundings to bfloat16."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--tokens", default="1,16,64,256", help="with commas")
    parser.add_argument("--sizes", default="2048,4096,8192", help="D, with commas")


def main(options: argparse.Namespace) -> list[Row]:
    """Check, time, print."""
    rows: list[Row] = []
    for size in (int(s) for s in options.sizes.split(",")):
        weight = 1 + 0.1 * jax.random.normal(jax.random.key(2), (STACK_BYTES // (2 * size), size), jnp.bfloat16)
        for tokens in (int(t) for t in options.tokens.split(",")):
            x, delta = (jax.random.normal(jax.random.key(i), (tokens, size), jnp.bfloat16) for i in range(2))
            found = error(x, delta, weight)
            row = Row({"tokens": tokens, "size": size, "error": found, "ok": found <= TOLERANCE})
            for name in IMPLEMENTATIONS:
                kernels = time(x, delta, weight, name)
                row[f"{name} us"] = sum(kernels.values())
                row[f"{name} kernels"] = " + ".join(f"{kernel} {us:.2f}" for kernel, us in kernels.items())
            rows.append(row)
            show(row)
    return rows


def error(x: jax.Array, delta: jax.Array, weight: jax.Array) -> float:
    """Of the kernel's norm, against float64, over the largest value."""
    run = jax.jit(partial(add_rms_norm, eps=EPS, implementation="mosaic"))
    total, normed = (np.asarray(a, np.float64) for a in run(x, delta, weight, jnp.int32(3)))
    assert np.array_equal(total, np.asarray(x + delta, np.float64)), "the sum is rounded once"
    exact = total / np.sqrt(np.mean(total**2, axis=-1, keepdims=True) + EPS) * np.asarray(weight[3], np.float64)
    return float(np.abs(normed - exact).max() / np.abs(exact).max())


def time(x: jax.Array, delta: jax.Array, weight: jax.Array, implementation: str) -> dict[str, float]:
    """Microseconds of a layer by kernel, median of three runs."""

    @jax.jit
    def walk(x, delta, weight):
        first = jnp.isnan(jnp.max(weight)).astype(jnp.int32)  # 0, known when all have been read

        def layer(carry, number):
            x, delta = carry
            return add_rms_norm(x, delta, weight, number, eps=EPS, implementation=implementation), None

        return jax.lax.scan(layer, (x, delta), first + jnp.arange(LAYERS, dtype=jnp.int32))[0]

    return layer_times(walk, LAYERS, x, delta, weight)


def roofline(rows: list[Row], path: str) -> None:
    """Plot microseconds over tokens."""
    plot_over_tokens(rows, path, title="residual add with norm", label=lambda row: f"{row['size']} values")
