"""The heads' change of basis: its kernel beside what XLA makes of the reference, before attention (RoPE; q, k, v) and after it.

A program reads stacks of bases that are larger than the L2 cache, so that this holds none of the layers whose bases it then uses
one after the other, each for heads of its own; after attention a layer turns what the one before it made, by a matrix that the
cache holds. Times are of kernels (CUPTI) for one layer; "kernels" are those that run once a layer at least, by name.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from kernel_bench.per_layer import layer_times, plot_over_tokens
from kernel_bench.report import Row, show

from pallas_kernels.head_basis.api import rope_change_basis, turn_heads
from pallas_kernels.implementation import IMPLEMENTATIONS

LAYERS = 32
STACK_BYTES = 2**28
"""Of the bases of queries, and as many of keys: each five times the L2 cache."""
TOLERANCE = 2e-2
"""Relative to the largest value: two roundings to bfloat16."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--tokens", default="1,16,64,256", help="with commas")
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--parts", default="before,after", help="before attention, after it, or both")


def main(options: argparse.Namespace) -> list[Row]:
    """Check, time, print."""
    size, kv_heads, rows = options.head_dim, options.kv_heads, []
    stack = STACK_BYTES // (2 * kv_heads * size * size)
    keys = jax.random.split(jax.random.key(0), 4)
    bases = [jax.random.normal(key, (stack, kv_heads, size, size), jnp.bfloat16) / size**0.5 for key in keys[:2]]
    matrix = jnp.sign(jax.random.normal(keys[2], (size, size), jnp.bfloat16))
    for part in options.parts.split(","):
        for tokens in (int(t) for t in options.tokens.split(",")):
            heads = options.heads + 2 * kv_heads * (part == "before")
            x = jax.random.normal(keys[3], (tokens, heads, size), jnp.bfloat16)
            angles = jax.random.uniform(jax.random.key(1), (tokens, size // 2)) * 6
            given = (x, jnp.cos(angles), jnp.sin(angles), *bases, matrix)
            found = error(part, given)
            row = Row({"part": part, "tokens": tokens, "error": found, "ok": found <= TOLERANCE})
            for name in IMPLEMENTATIONS:
                kernels = time(part, given, name)
                row[f"{name} us"] = sum(kernels.values())
                row[f"{name} kernels"] = " + ".join(f"{kernel} {us:.2f}" for kernel, us in kernels.items())
            rows.append(row)
            show(row)
    return rows


def run(part: str, given: tuple[jax.Array, ...], layer: jax.Array, implementation: str) -> tuple[jax.Array, ...]:
    """One layer."""
    x, cos, sin, for_queries, for_keys, matrix = given
    divisor = x.shape[-1] ** 0.5
    if part == "after":
        return (turn_heads(x, matrix, divisor=divisor, implementation=implementation),)
    return rope_change_basis(
        x, cos, sin, for_queries, for_keys, layer, matrix, divisor=divisor, implementation=implementation
    )


def error(part: str, given: tuple[jax.Array, ...]) -> float:
    """The largest difference from the reference, over the largest value."""
    outputs = (jax.jit(run, static_argnums=(0, 3))(part, given, jnp.int32(3), name) for name in IMPLEMENTATIONS)
    pairs = [[np.asarray(a, np.float32) for a in pair] for pair in zip(*outputs, strict=True)]
    return max(float(np.abs(found - expected).max() / np.abs(expected).max()) for found, expected in pairs)


def time(part: str, given: tuple[jax.Array, ...], implementation: str) -> dict[str, float]:
    """Microseconds of a layer by kernel, median of three runs."""
    x, *rest = given

    @jax.jit
    def walk(inputs, numbers, rest):
        first = jnp.isnan(jnp.max(rest[2]) + jnp.max(rest[3])).astype(jnp.int32)  # 0, known when all have been read
        outputs = []
        for x, number in zip(inputs, [n + first for n in numbers], strict=True):
            before = outputs[-1][0] if part == "after" and outputs else x
            outputs.append(run(part, (before, *rest), number, implementation))
        return outputs

    inputs, numbers = [jnp.copy(x) for _ in range(LAYERS)], [jnp.int32(i) for i in range(LAYERS)]
    return layer_times(walk, LAYERS, inputs, numbers, rest)


def roofline(rows: list[Row], path: str) -> None:
    """Plot microseconds over tokens."""
    plot_over_tokens(rows, path, title="change of basis", label=lambda row: f"{row['part']} attention")
