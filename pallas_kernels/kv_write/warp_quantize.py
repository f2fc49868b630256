"""Quantization of one head in the registers of a warp.

The warp finds minimum, maximum and (4 bits) the sums of the least-squares line by exchanging values. Division and rounding are
those of ``reference`` as IEEE 754 has them, the offset rounded down, the scale up, halves to even. XLA may multiply by a reciprocal
where this divides: where a quotient is exact, its scale or integer can be the next one. Sums are added in another order than XLA's.
"""

import functools

from pallas_kernels import ptx, ptx_sync
from pallas_kernels.ptx import Int, constant
from pallas_kernels.ptx_float import Float as Number
from pallas_kernels.ptx_float import from_half, to_half, to_integer

_LIMIT = 65504.0  # float16's largest


def quantize_warp(x: list[Number], bits: int, mine, head_dim: int) -> tuple[list[Int], Int]:
    """Quantize a head that a warp holds.

    Args:
        x: this thread's values.
        bits: 8 or 4.
        mine: whether they are its own; a thread past the head's end repeats another's.
        head_dim: H.

    Returns:
        This thread's integers, and the word of the head's (scale, offset). They are right in threads that hold values.
    """
    top = float(2**bits - 1)
    low, high = functools.reduce(Number.min, x), functools.reduce(Number.max, x)
    for mask in _masks(x, head_dim):
        low, high = low.min(low.from_lane_xor(mask)), high.max(high.from_lane_xor(mask))
    offset_bits = to_half(_clip(low), "rm")
    offset = from_half(offset_bits)
    scale_bits = to_half(_clip((high - offset).divide(Number(top))), "rp")
    scale = from_half(scale_bits)
    divisor = Number(1.0).select(ptx_sync.equal(scale_bits & 0x7FFF, 0), scale)
    levels = [((v - offset).divide(divisor)).max(Number(0.0)).min(Number(top)) for v in x]
    integers = [to_integer(v) for v in levels]
    pair = scale_bits + offset_bits * 65536
    if bits == 4:
        pair = _least_squares(x, integers, (scale, offset), pair, mine, head_dim)
    return integers, pair


def _least_squares(x, integers, kept, pair: Int, mine, head_dim: int) -> Int:
    """The line of least squares over the integers, or ``pair`` (numbers in ``kept``) where that is no better."""
    levels = [Number(ptx.as_float(i + 0x4B000000)) - 8388608.0 for i in integers]  # 2 ** 23 + i, exactly

    def total(values: list[Number]) -> Number:
        sum_ = functools.reduce(lambda a, b: a + b, values).select(mine, 0.0)
        for mask in _masks(x, head_dim):
            sum_ = sum_ + sum_.from_lane_xor(mask)
        return sum_

    count = Number(float(head_dim))
    level, value = total(levels).divide(count), total(x).divide(count)
    spread = total([(q - level) * (q - level) for q in levels])
    slope = total([(q - level) * (v - value) for q, v in zip(levels, x, strict=True)])
    slope = slope.divide(spread.select(spread > 0.0, 1.0))
    scale_bits = to_half(_clip(slope), "rn")
    scale = from_half(scale_bits)
    offset_bits = to_half(_clip(value - scale * level), "rn")
    offset = from_half(offset_bits)

    def error(scale: Number, offset: Number) -> Number:
        differences = [q * scale + offset - v for q, v in zip(levels, x, strict=True)]
        return total([d * d for d in differences])

    # Not a number compares false.
    better = error(*kept) > error(scale, offset)
    return (scale_bits + offset_bits * 65536).select(better, pair)


def _masks(x: list[Number], head_dim: int) -> list[int]:
    """Distances over which the threads that hold a head exchange values until each has seen all."""
    threads = head_dim // len(x)
    return [1 << i for i in range((threads - 1).bit_length())]


def _clip(x: Number) -> Number:
    return x.max(Number(-_LIMIT)).min(Number(_LIMIT))


def pack(integers: list[Int], bits: int) -> list[Int]:
    """Into words, the first value lowest."""
    each = 32 // bits
    words = []
    for start in range(0, len(integers), each):
        word = constant(0)
        for i, integer in enumerate(integers[start : start + each]):
            word = word + integer * (1 << bits * i)
        words.append(word)
    return words
