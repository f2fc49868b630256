"""Find the fastest way to cut attention's work on this machine's GPU, and write it down where ``choice`` reads it.

A candidate is timed at several workloads, for what it is chosen by is the model alone (see ``choice``): it loses at each the ratio
to the fastest there, and the least loss over all of them wins. Each candidate is first compared with the rule's own choice.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.device import device_name
from pallas_kernels.paged_attention import choice, mosaic
from pallas_kernels.paged_attention.cases import AttentionCase
from pallas_kernels.paged_attention.choice import Entry
from pallas_kernels.paged_attention.decode_layout import DecodeConfig
from pallas_kernels.paged_attention.reference import Context, Pages
from pallas_kernels.sweep import write
from pallas_kernels.timing import microseconds

DECODE = (1, 1024), (1, 16384), (64, 4096), (256, 1024)
"""Rows and tokens of each: short and long alone, and what fills the GPU."""
PREFILL = (1, 2048), (4, 512)
L2_BYTES = 250e6
"""Caches that calls take turns with: five times the L2 cache."""
TOLERANCE = 2e-2
"""Between two ways to cut the same work, in bfloat16."""
SHAPES = ("llama-3-8b", 32, 8, 128), ("smollm2-135m", 9, 3, 64)

Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Workload:
    """Arrays of one step: ``rows`` sequences of ``tokens`` each in shuffled pages, with new ``queries`` at their ends."""

    case: AttentionCase
    rows: int
    tokens: int
    queries: int

    @property
    def name(self) -> str:
        """As a table has it."""
        return f"{self.rows} x {self.tokens}"

    def arrays(self) -> tuple[Any, ...]:
        """Queries, K and V pools with their pairs, block table, first query of each row, lengths."""
        c, per_row = self.case, -(-self.tokens // self.case.page_size)
        layers = self.layers
        lead = (layers, self.rows * per_row, c.kv_heads, c.page_size)
        pools = []
        for seed in range(2):
            key = jax.random.key(seed)
            if c.bits == 16:
                pools.append((jax.random.normal(key, (*lead, c.head_dim), jnp.bfloat16), None))
                continue
            values = jax.random.bits(key, (*lead, c.head_dim * c.bits // 8), jnp.uint8)
            pairs = jax.random.uniform(key, (*lead, 2), jnp.float32, 0.01, 0.1).astype(jnp.float16)
            pools.append((values, pairs))
        table = np.random.default_rng(0).permutation(self.rows * per_row).reshape(self.rows, per_row)
        q = jax.random.normal(jax.random.key(2), (self.rows * self.queries, c.heads, c.head_dim), jnp.bfloat16)
        starts = jnp.arange(self.rows + 1, dtype=jnp.int32) * self.queries
        return q, *pools, jnp.asarray(table, jnp.int32), starts, jnp.full(self.rows, self.tokens, jnp.int32)

    @property
    def layers(self) -> int:
        """Caches that calls take turns with."""
        size = 2 * self.rows * self.tokens * self.case.kv_heads * self.case.head_dim * self.case.bits / 8
        return max(2, min(16, int(-(-L2_BYTES // size))))

    def calls(self, kernel: str, config: Config | None) -> Callable:
        """A function of ``arrays`` that attends once in each layer; None takes what ``choice`` does."""
        c, scale = self.case, self.case.head_dim**-0.5

        def run(q, k, v, table, starts, lens):
            def attend(layer: int) -> jax.Array:
                pools = Pages(k[0], k[1], c.bits), Pages(v[0], v[1], c.bits)
                context = Context(*pools, jnp.int32(layer), table, lens, jnp.int32(0))
                if kernel == "prefill":
                    return mosaic.prefill(q, context, starts, scale=scale, **(config or {}))
                decode = partial(
                    mosaic.decode, q, context, scale=scale, config=DecodeConfig(**config) if config else None
                )
                return decode() if self.queries == 1 else decode(starts, queries=self.queries)

            return [attend(layer) for layer in range(self.layers)]

        return jax.jit(run)


def candidates(kernel: str) -> list[Config]:
    """What is worth a measurement."""
    if kernel == "prefill":
        return [{"key_tile": tile, "stages": stages} for tile in (64, 128) for stages in (2, 3, 4)]
    return [
        {"tile": tile, "chunk": chunk, "groups": groups}
        for tile in (64, 128)
        for chunk in (256, 512, 1024)
        for groups in (1, 2, 3)
    ]


def workloads(kernel: str, case: AttentionCase, queries: int) -> list[Workload]:
    """Of a kernel; prefill's sequences are new from their first token on."""
    if kernel == "prefill":
        return [Workload(case, rows, tokens, tokens) for rows, tokens in PREFILL]
    return [Workload(case, rows, tokens, queries) for rows, tokens in DECODE]


def fastest(times: dict[int, dict[str, float]]) -> int:
    """The candidate with the least mean ratio to the fastest of each workload; one that failed at any of them is none.

    Raises:
        ValueError: none has a time for every workload.
    """
    names = {name for us in times.values() for name in us}
    whole = {i: us for i, us in times.items() if us.keys() == names}
    if not whole:
        raise ValueError(f"no candidate was timed at all of {sorted(names)}")
    best = {name: min(us[name] for us in whole.values()) for name in names}
    return min(whole, key=lambda i: fmean(whole[i][name] / best[name] for name in names))


def sweep(kernel: str, case: AttentionCase, queries: int) -> Entry:
    """Time every candidate at every workload: kernels only (CUPTI)."""
    times: dict[int, dict[str, float]] = {}
    configs = candidates(kernel)
    for work in workloads(kernel, case, queries):
        arrays = work.arrays()
        expected = work.calls(kernel, None)(*arrays)[0].astype(jnp.float32)
        for i, program in enumerate(_compiled(work, kernel, configs, arrays)):
            if program is None:
                continue
            off = jnp.linalg.norm(program(*arrays)[0].astype(jnp.float32) - expected) / jnp.linalg.norm(expected)
            if not off < TOLERANCE:
                print(f"{kernel} {case} {configs[i]}, {work.name}: off by {float(off):.3g}, left out", file=sys.stderr)
                continue
            times.setdefault(i, {})[work.name] = round(microseconds(program, work.layers, *arrays), 2)
    best = fastest(times)
    return Entry(
        kernel,
        case.head_dim,
        case.heads // case.kv_heads,
        case.bits,
        case.page_size,
        queries,
        configs[best],
        times[best],
    )


def _compiled(work: Workload, kernel: str, configs: list[Config], arrays) -> Iterator[jax.stages.Compiled | None]:
    """A program for each candidate, compiled at the same time; None where there can't be one."""

    def compiled(config: Config) -> jax.stages.Compiled | None:
        try:
            return work.calls(kernel, config).lower(*arrays).compile()
        except Exception as error:  # what doesn't fit or ptxas refuses is no candidate; say so and go on
            print(f"{kernel} {work.case} {config}: {str(error)[:200]}", file=sys.stderr)
            return None

    with ThreadPoolExecutor() as pool:
        yield from pool.map(compiled, configs)


def merged(table: dict[str, Any], entry: Entry) -> list[dict[str, Any]]:
    """The entry in place of one for the same shape; ordered by shape."""
    shape = ("kernel", "head_dim", "group", "bits", "page_size", "queries")
    found = {tuple(e[name] for name in shape): e for e in [*table.get("entries", []), asdict(entry)]}
    return [found[key] for key in sorted(found)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``sweep_and_write``."""
    parser.add_argument("--bits", default="16,8,4", help="of the cache, with commas")
    parser.add_argument("--page-size", type=int, default=64)
    parser.add_argument("--queries", default="1,4", help="query tokens of a row in decode, with commas; empty for none")
    parser.add_argument("--kernels", default="decode,prefill", help="with commas")
    parser.add_argument("--models", default=",".join(name for name, *_ in SHAPES), help="with commas")
    parser.add_argument("--out", type=Path, help="the table; default paged_attention/tuned/<device>.json")


def reason_no_gpu() -> str | None:
    """Why nothing can be timed here; None on a GPU."""
    return None if jax.default_backend() == "gpu" else f"tuning needs an NVIDIA GPU; jax sees {jax.devices()}"


def sweep_and_write(options: argparse.Namespace) -> int:
    """Sweep, and write the table after every shape; returns the exit status."""
    if reason := reason_no_gpu():
        print(reason, file=sys.stderr)
        return 2
    path = options.out or choice.table_path(device_name())
    table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    queries = {"decode": [int(n) for n in options.queries.split(",") if n], "prefill": [0]}
    for name, *heads in SHAPES:
        if name not in options.models.split(","):
            continue
        for bits in (int(b) for b in options.bits.split(",")):
            case = AttentionCase(name, *heads, bits=bits, page_size=options.page_size)
            for kernel in options.kernels.split(","):
                for count in queries[kernel]:
                    entry = sweep(kernel, case, count)
                    print(f"{name}, {bits} bits, {kernel}, {count} queries: {entry.config} {entry.us}", flush=True)
                    entries = merged(table, entry)
                    table = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "entries": entries}
                    write(path, table)
    return 0
