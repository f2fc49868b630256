"""The KV write on Hopper: a warp quantizes one head of one token in registers and stores it where it belongs.

The pools are passed as mutable references, so the kernel writes into them and into nothing else. A thread holds 8 values; the warp
finds minimum, maximum and (4 bits) the sums of the least-squares line by exchanging values. Division and rounding are those of
``reference`` as IEEE 754 has them, the offset rounded down, the scale up, halves to even. XLA may multiply by a reciprocal where
this divides: where a quotient is exact, its scale or integer can be the next one. Sums are added in another order than XLA's.
"""

import functools

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int32, Num

from pallas_kernels import ptx, ptx_sync
from pallas_kernels.device import reason_not_hopper
from pallas_kernels.ptx import Int, constant
from pallas_kernels.ptx_float import Float as Number
from pallas_kernels.ptx_float import from_half, to_half, to_integer, unpack_pair

_EACH = 8
"""Values of a thread: 16 bytes of bfloat16, the widest load."""
_WARPS = 4
_LIMIT = 65504.0  # float16's largest


def reason_not(pages: Num[Array, "L P K page Hs"], new: Float[Array, "T K H"], bits: int) -> str | None:
    """Why this kernel can't take a call; None if it can."""
    if reason := reason_not_hopper():
        return reason
    if str(new.dtype) not in ptx.SHORT_NAMES or (bits == 16 and pages.dtype != new.dtype):
        return (
            f"new tokens of {new.dtype} for pages of {pages.dtype} must be bfloat16 or float16, as pages of 16 bits are"
        )
    if new.shape[-1] % _EACH or new.shape[-1] > 32 * _EACH:
        return f"head_dim={new.shape[-1]} must be a multiple of {_EACH} up to {32 * _EACH}"
    return None


def write(
    pages: Num[Array, "L P K page Hs"],
    pairs: Float[Array, "L P K page 2"] | None,
    new: Float[Array, "T K H"],
    layer: Int32[Array, ""],
    page_ids: Int32[Array, " T"],
    offsets: Int32[Array, " T"],
    *,
    bits: int,
) -> tuple[Num[Array, "L P K page Hs"], Float[Array, "L P K page 2"] | None]:
    """As ``kv_write``, by the kernel; in place where the pools are donated."""
    pools = [jax.new_ref(pool) for pool in (pages, pairs) if pool is not None]
    _call(new.shape, ptx.SHORT_NAMES[str(new.dtype)], pages.shape, bits)(
        new, layer.reshape(1), page_ids, offsets, *pools
    )
    written = [jax.freeze(pool) for pool in pools]
    return written[0], written[1] if pairs is not None else None


@functools.lru_cache(maxsize=256)
def _call(shape: tuple[int, int, int], dtype: str, pool: tuple[int, ...], bits: int):
    def kv_write(*refs):
        def emit(*buffers):
            emit_warp(shape, dtype, pool, bits, [ptx.global_address(b) for b in buffers])

        ptx_sync.run_inline(emit, [plgpu.RefType() for _ in refs], *refs)

    return plgpu.kernel(
        kv_write,
        out_type=(),
        grid=(-(-shape[0] * shape[1] // _WARPS),),
        grid_names=("block",),
        num_threads=1,
        thread_name="warpgroup",
        compiler_params=ptx.compiler_params(),
    )


def emit_warp(shape: tuple[int, int, int], dtype: str, pool: tuple[int, ...], bits: int, addresses: list[Int]) -> None:
    """The code of a warp; addresses are those of the new tokens, layer, page ids, offsets, pages and, for integers, pairs."""
    tokens, heads, head_dim = shape
    _, pages, _, page_size, stored = pool
    new, layer, page_ids, offsets, values, *pairs = addresses
    thread = ptx.thread_index()
    lane, number = thread % 32, ptx.block_index() * _WARPS + thread // 32
    token = number // heads
    with ptx_sync.when(number < tokens * heads):
        page, place = (ptx.load_global(base + token.wide() * 4) for base in (page_ids, offsets))
        # Threads past the head's end repeat its last values: minimum and maximum stay what they are.
        part = ptx_sync.minimum(lane, head_dim // _EACH - 1)
        mine = lane < head_dim // _EACH
        words = ptx_sync.load_global_words(new + number.wide() * (2 * head_dim) + part.wide() * (2 * _EACH), 4)
        page_head = (ptx.load_global(layer).wide() * pages + page.wide()) * heads + (number % heads).wide()
        row = page_head * page_size + place.wide()
        with ptx_sync.when(page < pages):
            if bits == 16:
                with ptx_sync.when(mine):
                    ptx_sync.store_global(values + row * (2 * head_dim) + part.wide() * (2 * _EACH), *words)
                return
            x = [v for word in words for v in unpack_pair(word, dtype)]
            integers, pair = _quantize(x, bits, mine, head_dim)
            with ptx_sync.when(mine):
                packed = _pack(integers, bits)
                ptx_sync.store_global(values + row * stored + part.wide() * (_EACH * bits // 8), *packed)
            with ptx_sync.when(ptx_sync.equal(lane, 0)):
                ptx_sync.store_global(pairs[0] + row * 4, pair)


def _quantize(x: list[Number], bits: int, mine, head_dim: int) -> tuple[list[Int], Int]:
    """This thread's integers and the word of the head's (scale, offset)."""
    top = float(2**bits - 1)
    low, high = functools.reduce(Number.min, x), functools.reduce(Number.max, x)
    for mask in (1, 2, 4, 8, 16):
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
        for mask in (1, 2, 4, 8, 16):
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


def _clip(x: Number) -> Number:
    return x.max(Number(-_LIMIT)).min(Number(_LIMIT))


def _pack(integers: list[Int], bits: int) -> list[Int]:
    """Into words, the first value lowest."""
    each = 32 // bits
    words = []
    for start in range(0, len(integers), each):
        word = constant(0)
        for i, integer in enumerate(integers[start : start + each]):
            word = word + integer * (1 << bits * i)
        words.append(word)
    return words
