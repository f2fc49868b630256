"""The KV write: its kernel beside what XLA makes of the reference, with RoPE (split, RoPE, quantization, scatters) and without.

Times are of kernels (CUPTI), all of one layer added up: each call writes all layers one after the other in one program, so that the
caches see what a model's step shows them. The pools are donated. "temp bytes" are those of the compiled program: a copy of a pool
would show there. "GB/s" counts what is read and written once.
"""

import argparse
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from kernel_bench.per_layer import plot_over_tokens
from kernel_bench.report import Row, show

from pallas_kernels.implementation import IMPLEMENTATIONS
from pallas_kernels.kv_write.api import kv_write, rope_kv_write
from pallas_kernels.kv_write.reference import Pools
from pallas_kernels.timing import kernel_times

LAYERS, PAGES = 4, 512


class Held(jax.stages.Compiled):
    """A program with its arguments, that takes the pools its last call returned: they are donated, and a timer calls it twice.

    A timer compiles what is no ``Compiled``; so this is one.
    """

    def __init__(self, program: jax.stages.Compiled, pools: Pools, rest: tuple):
        self.program, self.pools, self.rest = program, pools, rest

    def __call__(self) -> jax.Array:
        """One call; what is returned is to wait for."""
        _, self.pools = self.program(self.pools, *self.rest)
        return self.pools.k


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--page-size", type=int, default=64)
    parser.add_argument("--bits", default="16,8,4", help="with commas")
    parser.add_argument("--tokens", default="1,16,64,256,2048", help="new tokens of a step, with commas")
    parser.add_argument("--rope", default="yes,no", help="with RoPE of queries and keys, without, or both")


def main(options: argparse.Namespace) -> list[Row]:
    """Time, compare, print."""
    rows: list[Row] = []
    for rope in options.rope.split(","):
        for bits in (int(b) for b in options.bits.split(",")):
            for tokens in (int(t) for t in options.tokens.split(",")):
                row = measure(options, bits, tokens, with_rope=rope == "yes")
                rows.append(row)
                show(row)
    return rows


def measure(options: argparse.Namespace, bits: int, tokens: int, *, with_rope: bool) -> Row:
    """Both implementations of one shape."""
    results = {name: run(options, bits, tokens, name, with_rope=with_rope) for name in IMPLEMENTATIONS}
    kernel, reference = results["mosaic"], results["reference"]
    differ = max(float(np.mean(a != b)) for a, b in zip(kernel["stored"], reference["stored"], strict=True))
    # For the GPU XLA multiplies by 1 / 255 where the kernel divides: a tenth of all 8-bit integers are off by one.
    row = Row({"rope": with_rope, "bits": bits, "tokens": tokens, "differing values": differ, "ok": differ < 0.15})
    for name, result in results.items():
        row |= {f"{name} us": result["us"], f"{name} kernels": result["kernels"], f"{name} temp bytes": result["temp"]}
    heads = 2 * options.heads * with_rope + 2 * options.kv_heads * (1 + bits / 16)
    row["mosaic GB/s"] = tokens * heads * options.head_dim * 2 / kernel["us"] / 1e3
    return row


def run(options: argparse.Namespace, bits: int, tokens: int, implementation: str, *, with_rope: bool) -> dict[str, Any]:
    """Median of five calls, and what the first stored and returned."""
    lead, kv_heads, head_dim = (LAYERS, PAGES, options.kv_heads, options.page_size), options.kv_heads, options.head_dim
    stored = jnp.zeros((*lead, head_dim * min(bits, 8) // 8), jnp.bfloat16 if bits == 16 else jnp.uint8)
    pairs = None if bits == 16 else jnp.zeros((*lead, 2), jnp.float16)
    pools = jax.tree.map(jnp.copy, Pools(stored, stored, pairs, pairs))
    heads = options.heads + 2 * kv_heads
    qkv = jax.random.normal(jax.random.key(0), (LAYERS, tokens, heads, head_dim), jnp.bfloat16)
    angles = jax.random.uniform(jax.random.key(1), (tokens, head_dim // 2)) * 6
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    k, v = (jnp.copy(part) for part in jnp.split(qkv[:, :, options.heads :], 2, axis=2))
    places = np.random.default_rng(0).permutation(PAGES * options.page_size)[:tokens].astype(np.int32)
    page_ids, offsets = jnp.asarray(places // options.page_size), jnp.asarray(places % options.page_size)
    chosen: Any = {"bits": bits, "implementation": implementation}
    new = tuple(qkv[i] for i in range(LAYERS)) if with_rope else tuple((k[i], v[i]) for i in range(LAYERS))

    def layers(pools, new, cos, sin, page_ids, offsets):
        queries = []
        for layer, heads in enumerate(new):
            if with_rope:
                q, pools = rope_kv_write(pools, heads, cos, sin, layer, page_ids, offsets, **chosen)
                queries.append(q)
            else:
                pools = kv_write(pools, heads[0], heads[1], layer, page_ids, offsets, **chosen)
        return queries, pools

    rest = new, cos, sin, page_ids, offsets
    compiled = jax.jit(layers, donate_argnums=0).lower(pools, *rest).compile()
    memory: Any = compiled.memory_analysis()
    queries, pools = compiled(pools, *rest)
    new_rows = [pool[1, page_ids, :, offsets] for pool in (pools.k, pools.v)]
    stored = [np.asarray(array.astype(jnp.float32)) for array in (*queries, *new_rows)]
    held = Held(compiled, pools, rest)
    times = [[us for _, us in kernel_times(held)] for _ in range(5)]
    return {
        "us": median(map(sum, times)) / LAYERS,
        "kernels": len(times[0]) / LAYERS,
        "temp": memory.temp_size_in_bytes,
        "stored": stored,
    }


def roofline(rows: list[Row], path: str) -> None:
    """Plot microseconds over tokens."""
    plot_over_tokens(
        rows, path, title="KV write", label=lambda row: f"{row['bits']} bits{', RoPE' if row['rope'] else ''}"
    )
