"""Second stage of decode: a warp joins the chunks of one query head.

Lane s holds the maximum and sum of chunk s, so a context has at most 32 chunks. The lanes then share the head dimension and add the
chunks' outputs, eight loads at a time. A context of no tokens comes out 0.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int32

from pallas_kernels import ptx, ptx_sync
from pallas_kernels.paged_attention.split import MAX_CHUNKS, Split
from pallas_kernels.ptx import Int
from pallas_kernels.ptx_float import Float as Number
from pallas_kernels.ptx_float import pack_words

_WARPS = 4
_UNROLL = 8


def merge_partials(
    partials: Float[Array, "B C N H"],
    stats: Float[Array, "B C N 2"],
    context_lens: Int32[Array, " B"],
    window: Int32[Array, " 1"],
    split: Split,
    dtype: str,
) -> Float[Array, "B N H"]:
    """The attention output ``sum_c w_c o_c / sum_c w_c l_c`` with ``w_c = 2 ** (m_c - max m)``, in bfloat16 or float16."""
    return _call(partials.shape, split, dtype)(context_lens, window, partials, stats)


@functools.lru_cache(maxsize=512)
def _call(shape: tuple[int, int, int, int], split: Split, dtype: str):
    batch, _, heads, head_dim = shape

    def paged_decode_merge(*refs):
        types = [plgpu.RefType() for _ in refs]
        ptx_sync.run_inline(
            lambda *buffers: _emit(shape, split, dtype, [ptx.global_address(b) for b in buffers]), types, *refs
        )

    return jax.jit(
        plgpu.kernel(
            paged_decode_merge,
            out_type=jax.ShapeDtypeStruct((batch, heads, head_dim), jnp.dtype(dtype)),
            grid=(-(-batch * heads // _WARPS),),
            grid_names=("block",),
            num_threads=1,
            thread_name="warpgroup",
            compiler_params=ptx.compiler_params(),
        )
    )


def _emit(shape: tuple[int, int, int, int], split: Split, dtype: str, addresses: list[Int]) -> None:
    batch, chunks_stored, heads, head_dim = shape
    lens, window, partials, stats, out = addresses
    thread = ptx.thread_index()
    lane, number = thread % 32, ptx.block_index() * _WARPS + thread // 32
    with ptx_sync.when(number < batch * heads):
        row, head = number // heads, number % heads
        length = ptx.load_global(lens + row.wide() * 4)
        chunks = split.cut(length, ptx.load_global(window)).chunks
        first = row * (chunks_stored * heads) + head

        place = first + ptx_sync.minimum(lane, chunks_stored - 1) * heads
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
                address = partials + (first + ptx_sync.minimum(chunk, chunks - 1) * heads).wide() * (4 * head_dim)
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
