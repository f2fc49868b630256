"""Second stage of decode: a warp joins the chunks of one query head of one query token.

Lane s holds the maximum and sum of chunk s, so a context has at most 32 chunks. The lanes then share the head dimension and add the
chunks' outputs, eight loads at a time. A context of no tokens comes out 0.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int32

from pallas_kernels import ptx, ptx_sync
from pallas_kernels.paged_attention.decode_layout import Shape
from pallas_kernels.paged_attention.split import MAX_CHUNKS, Split
from pallas_kernels.ptx import Int, constant
from pallas_kernels.ptx_float import Float as Number
from pallas_kernels.ptx_float import pack_words, to_integer

_WARPS = 4
_UNROLL = 8


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
    batch, heads, head_dim, rows, chunks_stored = (
        shape.batch, shape.heads, shape.stored.head_dim, shape.rows, split.max_chunks,
    )  # fmt: skip
    lens, window, *starts, partials, stats, out = addresses
    thread = ptx.thread_index()
    lane, number = thread % 32, ptx.block_index() * _WARPS + thread // 32
    with ptx_sync.when(number < tokens * heads):
        token, head = number // heads, number % heads
        row, query, queries = token, constant(0), constant(1)
        if shape.queries > 1:
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
        if shape.queries > 1:
            chunks = chunks.select(known, 0)
        column = query * shape.group + head % shape.group
        first = row * (chunks_stored * rows) + (head // shape.group) * (shape.group * shape.queries) + column

        place = first + ptx_sync.minimum(lane, chunks_stored - 1) * rows
        held = lane < chunks
        maximum, total = (Number(ptx.as_float(w)) for w in ptx_sync.load_global_words(stats + place.wide() * 8, 2))
        maximum, total = maximum.select(held, -1e30), total.select(held, 0.0)
        top = maximum
        for mask in (1, 2, 4, 8, 16):
            top = top.max(top.from_lane_xor(mask))
        weight = (maximum - top).exp2().select(held, 0.0)
        total = total * weight
        for mask in (1, 2, 4, 8, 16):
            total = total + total.from_lane_xor(mask)
        weight = weight * total.reciprocal().select(total > 0.0, 0.0)

        pairs = head_dim // 2
        slots = -(-pairs // 32)

        def add(i: Int, carry):
            sums = [Number(v) for v in carry]
            for j in range(_UNROLL):
                chunk = i * _UNROLL + j
                # Past the last chunk: its weight is 0 and the chunk before is read again.
                share = weight.from_lane(ptx_sync.minimum(chunk, MAX_CHUNKS - 1))
                address = partials + (first + ptx_sync.minimum(chunk, chunks - 1) * rows).wide() * (4 * head_dim)
                for slot in range(slots):
                    pair = ptx_sync.minimum(lane + 32 * slot, pairs - 1)
                    words = ptx_sync.load_global_words(address + pair.wide() * 8, 2)
                    for k, word in enumerate(words):
                        sums[2 * slot + k] = Number(ptx.as_float(word)).fma(share, sums[2 * slot + k])
            return [s.value for s in sums]

        rounds = ptx_sync.ceil_div(chunks, _UNROLL)
        sums = [Number(v) for v in ptx.repeat(rounds, [Number(0.0).value] * (2 * slots), add)]
        name = ptx.SHORT_NAMES[dtype]
        for slot in range(slots):
            pair = lane + 32 * slot
            with ptx_sync.when(pair < pairs):
                packed = pack_words(sums[2 * slot], sums[2 * slot + 1], name)
                ptx_sync.store_global(out + (number * pairs + pair).wide() * 4, packed)
