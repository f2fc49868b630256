"""Paged attention, decode and prefill, beside torch's and cuDNN's on contiguous keys and values and JAX's own paged one.

Each width is first checked on ragged contexts against the float32 reference with the same cache. Times are of kernels (CUPTI), all
of one call added up (with several queries decode and its merge). Decode's layer changes from call to call, so that the L2 cache
holds nothing of use; its bytes are those of keys, values and their pairs as stored. Pages are in shuffled order.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from kernel_bench import attention_peers
from kernel_bench.report import Row, show

from pallas_kernels.kv_write.reference import quantize_heads
from pallas_kernels.paged_attention.api import paged_decode, paged_prefill
from pallas_kernels.paged_attention.reference import Pages
from pallas_kernels.timing import copy_bandwidth, microseconds

TOLERANCE = 5e-3
"""Of bfloat16 outputs, relative, as issue 5 has it."""
ROTATION_BYTES = 250e6
"""Caches that calls take turns with: five times the L2 cache."""
CHECKED = (0, 1, 63, 64, 65, 700, 2000)
MOST_DRAWN = 4096
"""Pages of random numbers: drawing one byte takes eight of memory, and there are caches of 9 GB."""
MOST_NEW = 150
"""New tokens of each of them where prefill is checked."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this benchmark."""
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--page-size", type=int, default=64)
    parser.add_argument("--bits", default="16,8,4", help="with commas")
    parser.add_argument(
        "--batch", default="1,16,64,256", help="sequences of a decode step, with commas; empty for none"
    )
    parser.add_argument(
        "--queries",
        default="1,4",
        help="query tokens of each sequence in a decode step, with commas: more check a draft",
    )
    parser.add_argument("--context", default="1024,4096,16384", help="tokens of each, with commas")
    parser.add_argument(
        "--prefill", default="2048,8192", help="new tokens of one sequence, with commas; empty for none"
    )
    parser.add_argument("--max-gigabytes", type=float, default=20.0, help="larger caches are left out")
    parser.add_argument(
        "--peers", action="store_true", help="cuDNN and JAX's paged attention, and torch's where it is installed"
    )


def main(options: argparse.Namespace) -> list[Row]:
    """Check, time, print."""
    bandwidth = copy_bandwidth()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, copy {bandwidth:,.0f} GB/s", flush=True)
    rows: list[Row] = []
    for bits in _integers(options.bits):
        found = error(options, bits, queries=1) if options.batch else 0.0
        steps = [(b, c) for b in _integers(options.batch) for c in _integers(options.context)]
        steps = [(b, c) for b, c in steps if b * c * token_bytes(options, bits) <= options.max_gigabytes * 1e9]
        for queries in _integers(options.queries):
            if queries > 1:
                found = error(options, bits, queries=queries)
            for batch, context in steps:
                rows.append(decode_row(options, bits, batch, context, queries, bandwidth, found))
                show(rows[-1])
        found = error(options, bits, queries=MOST_NEW) if options.prefill else 0.0
        for tokens in _integers(options.prefill):
            rows.append(prefill_row(options, bits, tokens, found))
            show(rows[-1])
    return rows


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def token_bytes(options: argparse.Namespace, bits: int) -> int:
    """Of the keys and values of a token in one layer, pairs included."""
    return 2 * options.kv_heads * (options.head_dim * bits // 8 + (0 if bits == 16 else 4))


def decode_row(
    options: argparse.Namespace, bits: int, batch: int, context: int, queries: int, bandwidth: float, found: float
) -> Row:
    """One shape of decode; of several queries also the time that the prefill kernel takes for them."""
    size = batch * context * token_bytes(options, bits)
    layers = max(2, min(16, int(-(-ROTATION_BYTES // size))))
    per_row = -(-context // options.page_size)
    k_pages, v_pages = random_pools(options, bits, layers, batch * per_row)
    table = jnp.asarray(np.random.default_rng(0).permutation(batch * per_row).reshape(batch, per_row), jnp.int32)
    q = jax.random.normal(jax.random.key(2), (batch * queries, options.heads, options.head_dim), jnp.bfloat16)
    lens, starts = jnp.full((batch,), context, jnp.int32), jnp.arange(batch + 1, dtype=jnp.int32) * queries

    def calls(q, k, k_pairs, v, v_pairs, table, starts, lens, most):
        pools, scale = (Pages(k, k_pairs, bits), Pages(v, v_pairs, bits)), options.head_dim**-0.5
        if most == 1:
            return [paged_decode(q, *pools, jnp.int32(i), table, lens, scale=scale) for i in range(layers)]
        run = partial(paged_prefill, q, *pools, scale=scale, max_queries=most)
        return [run(jnp.int32(i), table, starts, lens) for i in range(layers)]

    arguments = q, *k_pages[:2], *v_pages[:2], table, starts, lens
    time = microseconds(jax.jit(partial(calls, most=queries)), layers, *arguments)
    others = {}
    if queries > 1:
        others = {"prefill us": microseconds(jax.jit(partial(calls, most=None)), layers, *arguments)}
    elif options.peers and bits == 16:
        sizes = {"heads": options.heads, "kv_heads": options.kv_heads, "head_dim": options.head_dim}
        others = attention_peers.decode(batch, context, **sizes, page=options.page_size, copies=layers)
    return Row(
        {"kernel": "decode", "bits": bits, "batch": batch, "queries": queries, "tokens": context, "us": time,
         "GB/s": size / time / 1e3, "% of copy": 100 * size / time / 1e3 / bandwidth, "error": found,
         "ok": found <= TOLERANCE, **others}
    )  # fmt: skip


def prefill_row(options: argparse.Namespace, bits: int, tokens: int, found: float) -> Row:
    """One causal prompt, nothing cached before it."""
    pages = -(-tokens // options.page_size)
    k_pages, v_pages = random_pools(options, bits, 1, pages)
    table = jnp.asarray(np.random.default_rng(0).permutation(pages)[None], jnp.int32)
    q = jax.random.normal(jax.random.key(2), (tokens, options.heads, options.head_dim), jnp.bfloat16)
    starts, lens = jnp.array([0, tokens], jnp.int32), jnp.array([tokens], jnp.int32)

    def call(q, k, k_pairs, v, v_pairs, table, starts, lens):
        pools = Pages(k, k_pairs, bits), Pages(v, v_pairs, bits)
        return paged_prefill(q, *pools, jnp.int32(0), table, starts, lens, scale=options.head_dim**-0.5)

    time = microseconds(jax.jit(call), 1, q, *k_pages[:2], *v_pages[:2], table, starts, lens)
    flops = 2 * tokens * tokens * options.heads * options.head_dim
    others = {}
    if options.peers and bits == 16:
        others = attention_peers.cudnn_prefill(
            tokens, heads=options.heads, kv_heads=options.kv_heads, head_dim=options.head_dim
        )
    return Row(
        {"kernel": "prefill", "bits": bits, "batch": 1, "tokens": tokens, "us": time, "TFLOP/s": flops / time / 1e6,
         "error": found, "ok": found <= TOLERANCE, **others}
    )  # fmt: skip


def random_pools(options: argparse.Namespace, bits: int, layers: int, pages: int) -> list[Pages]:
    """Pools full of random bits; integers with scales around 0.05. The same pages again and again where there are many."""
    few = next(n for n in range(min(pages, MOST_DRAWN), 0, -1) if pages % n == 0)
    lead = (few, options.kv_heads, options.page_size)

    def fill(seed: int) -> Pages:
        key, key_of_pairs = jax.random.key(seed), jax.random.key(seed + 2)
        if bits == 16:
            return Pages(repeated(jax.random.normal(key, (*lead, options.head_dim), jnp.bfloat16)), None, 16)
        values = jax.random.bits(key, (*lead, options.head_dim * bits // 8), jnp.uint8)
        pairs = jax.random.uniform(key_of_pairs, (*lead, 2), jnp.bfloat16, 0.0, 0.1).astype(jnp.float16)
        return Pages(repeated(values), repeated(pairs), bits)

    def repeated(drawn: jax.Array) -> jax.Array:
        whole = jnp.broadcast_to(drawn, (layers, pages // few, *drawn.shape))
        return whole.reshape(layers, pages, *drawn.shape[1:])

    return [jax.jit(fill, static_argnums=0)(seed) for seed in range(2)]


def error(options: argparse.Namespace, bits: int, *, queries: int) -> float:
    """``norm(out - exact) / norm(exact)`` on ragged contexts, exact being the float32 reference.

    The last ``queries`` tokens of each context are new; one is decode, more than a few are prefill.
    """
    page, lens = options.page_size, np.array(CHECKED, np.int32)
    counts = -(-lens // page)
    pages = int(counts.sum()) + 1
    ids, table = np.random.default_rng().permutation(pages), np.zeros((len(lens), counts.max()), np.int32)
    for row, count in enumerate(counts):
        table[row, :count], ids = ids[:count], ids[count:]
    keys = jax.random.split(jax.random.key(int(ids[0])), 3)
    x = [jax.random.normal(k, (pages * page, options.kv_heads, options.head_dim), jnp.float32) for k in keys[:2]]
    pools = []
    for values in x:
        stored, pairs = (values.astype(jnp.bfloat16), None) if bits == 16 else quantize_heads(values, bits=bits)
        pools += [_in_pages(a, page) for a in (stored, pairs)]
    new = np.minimum(lens, queries)
    starts = np.concatenate([[0], np.cumsum(np.sort(new)[::-1])]).astype(np.int32)
    order = np.argsort(-new, kind="stable") if queries > 1 else np.arange(len(lens))
    tokens = int(starts[-1]) if queries > 1 else len(lens)
    q = jax.random.normal(keys[2], (tokens, options.heads, options.head_dim), jnp.bfloat16)

    def attend(q, k, k_pairs, v, v_pairs, implementation):
        kept = Pages(k, k_pairs, bits), Pages(v, v_pairs, bits)
        rows = [jnp.asarray(table[order]), *([jnp.asarray(starts)] if queries > 1 else []), jnp.asarray(lens[order])]
        attention = partial(paged_prefill, max_queries=queries) if queries > 1 else paged_decode
        scale = options.head_dim**-0.5
        return attention(q, *kept, jnp.int32(0), *rows, scale=scale, implementation=implementation)

    run = jax.jit(attend, static_argnames="implementation")
    exact = np.asarray(run(q.astype(jnp.float32), *pools, implementation="reference"), np.float64)
    out = np.asarray(run(q, *pools, implementation=None).astype(jnp.float32), np.float64)
    return float(np.linalg.norm(out - exact) / np.linalg.norm(exact))


def _in_pages(tokens: jax.Array | None, page: int) -> jax.Array | None:
    if tokens is None:
        return None
    return tokens.reshape(1, -1, page, *tokens.shape[1:]).swapaxes(2, 3)


def roofline(rows: list[Row], path: str) -> None:
    """Plot decode: share of copy bandwidth over the context, a line for each width and batch."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    decode = [row for row in rows if row["kernel"] == "decode"]
    decode = [row for row in decode if row["queries"] == 1]
    for bits, batch in dict.fromkeys((row["bits"], row["batch"]) for row in decode):
        points = [(r["tokens"], r["% of copy"]) for r in decode if (r["bits"], r["batch"]) == (bits, batch)]
        style = {16: "-", 8: "--", 4: ":"}[bits]
        axes.semilogx(*zip(*points, strict=True), style, marker="o", label=f"{bits} bits, batch {batch}")
    axes.set(
        xlabel="context, tokens",
        ylabel="% of copy bandwidth",
        title=f"decode attention, {jax.devices()[0].device_kind}, jax {jax.__version__}",
    )
    axes.set_ylim(0, 105)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120, bbox_inches="tight")
