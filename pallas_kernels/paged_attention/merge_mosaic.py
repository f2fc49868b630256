"""Second stage of decode where the first does not merge: a warp merges the chunks of one query head of one query token.

A context of no tokens comes out 0.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int32

from pallas_kernels import ptx, ptx_sync
from pallas_kernels.paged_attention.chunk_merge import Partials, merge_chunks, store_column
from pallas_kernels.paged_attention.decode_layout import Shape
from pallas_kernels.paged_attention.split import Split
from pallas_kernels.ptx import Int, constant
from pallas_kernels.ptx_float import Float as Number
from pallas_kernels.ptx_float import to_integer

_WARPS = 4


def merge_partials(
    partials: Float[Array, "B C R H"],
    stats: Float[Array, "B C R 2"],
    context_lens: Int32[Array, " B"],
    window: Int32[Array, " 1"],
    query_start: Int32[Array, " S"] | None,
    shape: Shape,
    split: Split,
    tokens: int,
    dtype: str,
) -> Float[Array, "T N H"]:
    """The attention output ``sum_c w_c o_c / sum_c w_c l_c`` with ``w_c = 2 ** (m_c - max m)``, in bfloat16 or float16.

    Args:
        query_start: first token of each row and, last, one past the last of all, [B + 1]; None where each row has one.
        tokens: T; those of no row come out 0.
    """
    starts = () if query_start is None else (query_start,)
    return _call(shape, split, tokens, dtype)(context_lens, window, *starts, partials, stats)


@functools.lru_cache(maxsize=512)
def _call(shape: Shape, split: Split, tokens: int, dtype: str):
    def paged_decode_merge(*refs):
        types = [plgpu.RefType() for _ in refs]
        ptx_sync.run_inline(
            lambda *buffers: emit_merge(shape, split, tokens, dtype, [ptx.global_address(b) for b in buffers]),
            types,
            *refs,
        )

    return jax.jit(
        plgpu.kernel(
            paged_decode_merge,
            out_type=jax.ShapeDtypeStruct((tokens, shape.heads, shape.stored.head_dim), jnp.dtype(dtype)),
            grid=(-(-tokens * shape.heads // _WARPS),),
            grid_names=("block",),
            num_threads=1,
            thread_name="warpgroup",
            compiler_params=ptx.compiler_params(),
        )
    )


def _row_of_token(token: Int, lane: Int, query_start: Int, batch: int) -> Int:
    """Rows whose queries all come before a token: the row that it belongs to, or ``batch``."""
    before = Number(0.0)
    for i in range(-(-batch // 32)):
        row = lane + 32 * i
        end = ptx.load_global(query_start + (ptx_sync.minimum(row, batch - 1) + 1).wide() * 4)
        passed = ptx_sync.both(row < batch, end < token + 1)
        before = before + Number(1.0).select(passed, 0.0)
    for mask in (1, 2, 4, 8, 16):
        before = before + before.from_lane_xor(mask)
    return to_integer(before)


def emit_merge(shape: Shape, split: Split, tokens: int, dtype: str, addresses: list[Int]) -> None:
    """The code of all threads; addresses are those of the arrays in the order of the call, and of the output."""
    batch, heads, head_dim, most = shape.batch, shape.heads, shape.stored.head_dim, split.max_chunks
    lens, window, *starts, partials, stats, out = addresses
    thread = ptx.thread_index()
    lane, number = thread % 32, ptx.block_index() * _WARPS + thread // 32
    with ptx_sync.when(number < tokens * heads):
        token, head = number // heads, number % heads
        row, query, queries = token, constant(0), constant(1)
        if starts:
            row = _row_of_token(token, lane, starts[0], batch)
            inside = row < batch
            row = ptx_sync.minimum(row, batch - 1)
            begin, end = (ptx.load_global(starts[0] + (row + i).wide() * 4) for i in (0, 1))
            query, queries = token - begin, ptx_sync.minimum(end - begin, shape.queries)
            # Tokens of no row, and those that a row has too many of, come out 0.
            known = ptx_sync.both(inside, query < queries)
            query = query.select(known, 0)
        length = ptx.load_global(lens + row.wide() * 4)
        chunks = split.cut(length, ptx.load_global(window), queries).chunks
        if starts:
            chunks = chunks.select(known, 0)
        column = query * shape.group + head % shape.group
        first = row * (most * shape.rows) + (head // shape.group) * (shape.group * shape.queries) + column

        sizes = {"most": most, "rows": shape.rows, "head_dim": head_dim}
        values = merge_chunks(Partials(partials, stats), first, chunks, lane, **sizes)
        store_column(out, number, values, lane, head_dim=head_dim, dtype=ptx.SHORT_NAMES[dtype])
