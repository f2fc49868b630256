"""The merge of a context's chunks: ``sum_c w_c o_c / sum_c w_c l_c`` with ``w_c = 2 ** (m_c - max m)``, in the chunks' order."""

from dataclasses import dataclass

from pallas_kernels import ptx, ptx_sync
from pallas_kernels.ptx import Int, constant
from pallas_kernels.ptx_float import Float, floats, pack_words

_UNROLL = 8
"""Chunks whose loads are under way at a time."""


def inverse(total: Float) -> Float:
    """1 / total; 0 for a total of nothing."""
    return total.reciprocal().select(total > 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Partials:
    """Addresses of what is stored of chunks: outputs (times their sums) [B, C, R, H] and (maximum, sum) [B, C, R, 2], float32."""

    outputs: Int
    stats: Int


def merge_chunks(
    partials: Partials, first: Int, chunks: Int, lane: Int, *, most: int, rows: int, head_dim: int
) -> list[list[Float]]:
    """A column's output, by one warp: values 4 i to 4 i + 3 of every 128 in lane i. Without chunks it is 0.

    Args:
        first: row of chunk 0; each chunk's is ``rows`` past the one before.
        chunks: of the column, ``most`` at most: as many as a warp has lanes.
    """
    quads, slots, unroll = head_dim // 4, -(-head_dim // 128), min(_UNROLL, most)
    # Of a lane past the end of the head dimension the last values are read, and not stored.
    places = [ptx_sync.minimum(lane + 32 * slot, quads - 1).wide() * 16 for slot in range(slots)]
    held = lane < chunks

    def load(start: "Int | int") -> list[list[Float]]:
        base = partials.outputs + ((constant(0) + start) * rows + first).wide() * (4 * head_dim)
        words = [
            ptx_sync.load_relaxed(base + place + j * (rows * 4 * head_dim), 4, (constant(j) + start) < chunks)
            for j in range(unroll)
            for place in places
        ]
        return [[Float(ptx.as_float(w)) for w in four] for four in words]

    def add(start: "Int | int", values: list[list[Float]], sums: list[Float]) -> list[Float]:
        sums = list(sums)
        for j in range(unroll):
            share = weight.from_lane(constant(j) + start)
            for slot in range(slots):
                for k, value in enumerate(values[j * slots + slot]):
                    sums[4 * slot + k] = value.fma(share, sums[4 * slot + k])
        return sums

    # The first outputs are on their way while the weights are computed.
    values = load(0)
    address = partials.stats + (lane * rows + first).wide() * 8
    maximum, total = (Float(ptx.as_float(w)) for w in ptx_sync.load_relaxed(address, 2, held))
    maximum = maximum.select(held, -1e30)
    masks = [mask for mask in (1, 2, 4, 8, 16) if mask < most]
    top = maximum
    for mask in masks:
        top = top.max(top.from_lane_xor(mask))
    weight = (maximum - top).exp2().select(held, 0.0)
    total = total * weight
    for mask in masks:
        total = total + total.from_lane_xor(mask)
    weight = weight * inverse(total)

    sums = add(0, values, [Float(0.0)] * (4 * slots))
    if most > unroll:

        def add_more(i: Int, carry):
            start = (i + 1) * unroll
            return [s.value for s in add(start, load(start), floats(carry))]

        rounds = ptx_sync.ceil_div(chunks, unroll)
        more = (rounds - 1).select(constant(1) < rounds, 0)
        sums = floats(ptx.repeat(more, [s.value for s in sums], add_more))
    return [sums[4 * slot : 4 * slot + 4] for slot in range(slots)]


def store_column(output: Int, row: Int, values: list[list[Float]], lane: Int, *, head_dim: int, dtype: str) -> None:
    """What ``merge_chunks`` returns, rounded to ``dtype`` (bf16 or f16), as a row of an output [rows, H]."""
    quads = head_dim // 4
    for slot, four in enumerate(values):
        quad = lane + 32 * slot
        with ptx_sync.when(quad < quads):
            words = [pack_words(four[i], four[i + 1], dtype) for i in (0, 2)]
            ptx_sync.store_global(output + (row * quads + quad).wide() * 8, *words)
