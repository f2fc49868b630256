"""Residual add and norm on Hopper, for the few tokens of a decode step: the time is latency, so everything is loaded at once.

A block owns a token. A thread holds 8 values (16 bytes, the widest load) of x, delta and weight for every 4096 of the row:

    all threads   load x and delta; the layer's number, then its weights, which arrive while the squares are added up
                  add, round, store the sum; add its squares: within the thread, the warp (shuffles), the block (shared memory)
                  scale, round, times weight, store

The order of the additions depends on the row's size alone. ``mean`` multiplies by the rounded 1 / D, as XLA does with a constant
divisor; sums are added in another order than XLA's and ``rsqrt`` is good to 1 unit in the last place of float32. So a value that
lies next to a rounding border of bfloat16 or float16 can come out as its neighbour.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxtyping import Array, Float, Int32

from pallas_kernels import ptx, ptx_sync
from pallas_kernels.device import reason_not_hopper
from pallas_kernels.ptx import Int
from pallas_kernels.ptx_float import Float as Number
from pallas_kernels.ptx_float import unpack_pair

_EACH = 8
_WARPGROUP = 128
_MOST_THREADS = 512
_MOST_CHUNKS = 8
"""Pieces of 16 bytes of a row that a thread holds in registers, of x, of delta and of weight."""


@dataclass(frozen=True, slots=True)
class Row:
    """How the values of a token are shared out: threads take pieces of 8 in turn, ``chunks`` times.

    Attributes:
        size: values of a token.
        given: threads of a block that has other work, too; 0: as many as suit the row.
    """

    size: int
    given: int = 0

    @property
    def pieces(self) -> int:
        """Of 8 values."""
        return self.size // _EACH

    @property
    def chunks(self) -> int:
        """Pieces of a thread, at most."""
        return -(-self.pieces // (self.given or _MOST_THREADS))

    @property
    def warpgroups(self) -> int:
        """Of a block; if they are not given, as few as hold the row in that many chunks."""
        return self.given // _WARPGROUP if self.given else -(-self.pieces // (self.chunks * _WARPGROUP))

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.warpgroups * _WARPGROUP

    @property
    def fits(self) -> bool:
        """Do the threads have registers for their pieces?"""
        return self.size % _EACH == 0 and self.chunks <= _MOST_CHUNKS


def reason_not(x: Float[Array, "T D"], delta: Float[Array, "T D"] | None, weight: Float[Array, "L D"]) -> str | None:
    """Why this kernel can't take a call; None if it can."""
    if reason := reason_not_hopper():
        return reason
    dtypes = [str(a.dtype) for a in (x, delta, weight) if a is not None]
    if dtypes[0] not in ptx.SHORT_NAMES or len(set(dtypes)) > 1:
        return f"x, delta and weight of {', '.join(dtypes)} must all be bfloat16 or all float16"
    if not Row(x.shape[1]).fits:
        return f"size={x.shape[1]} must be a multiple of {_EACH} up to {_MOST_CHUNKS * _MOST_THREADS * _EACH}"
    return None


def add_rms_norm(
    x: Float[Array, "T D"],
    delta: Float[Array, "T D"] | None,
    weight: Float[Array, "L D"],
    layer: Int32[Array, ""],
    *,
    eps: float,
) -> tuple[Float[Array, "T D"], Float[Array, "T D"]]:
    """As ``add_rms_norm_reference``, by the kernel."""
    call = _call(*x.shape, str(x.dtype), eps, delta is not None)
    if delta is None:
        (normed,) = call(x, weight, layer.reshape(1))
        return x, normed
    total, normed = call(x, delta, weight, layer.reshape(1))
    return total, normed


@functools.lru_cache(maxsize=256)
def _call(tokens: int, size: int, dtype: str, eps: float, adds: bool):
    row = Row(size)
    out = jax.ShapeDtypeStruct((tokens, size), jnp.dtype(dtype))

    def add_rms_norm(*refs):
        def emit(*buffers):
            *arrays, shared = buffers
            addresses = [ptx.global_address(b) for b in arrays]
            emit_thread(row, ptx.SHORT_NAMES[dtype], eps, addresses, ptx.shared_address(shared))

        ptx_sync.run_inline(emit, [plgpu.RefType() for _ in refs], *refs)

    return jax.jit(
        plgpu.kernel(
            add_rms_norm,
            out_type=(out, out) if adds else (out,),
            scratch_types=[plgpu.SMEM((row.threads // 32,), jnp.float32)],
            grid=(tokens,),
            grid_names=("token",),
            num_threads=row.warpgroups,
            thread_name="warpgroup",
            compiler_params=ptx.compiler_params(),
        )
    )


def emit_thread(row: Row, dtype: str, eps: float, addresses: list[Int], shared: Int) -> None:
    """The code of a thread; addresses are those of x, (delta,) weight, layer, (sum,) and norm."""
    adds = len(addresses) == 6
    x, weight, layer, normed = (addresses[i] for i in ((0, 2, 3, 5) if adds else (0, 1, 2, 3)))
    thread, token = ptx.thread_index(), ptx.block_index().wide() * (2 * row.size)
    gain = weight + ptx.load_global(layer).wide() * (2 * row.size)
    delta = addresses[1] + token if adds else None
    found = norm_of_row(row, dtype, eps, thread, x + token, delta, gain, shared)
    if adds:
        _store(addresses[4] + token, found.places, found.totals)
    _store(normed + token, found.places, found.scaled)


class NormOfRow(NamedTuple):
    """A thread's share of a token: pieces of four words (8 values) each.

    Attributes:
        places: number of each piece, and whether there is one; None if there always is.
        totals: of x and delta. scaled: their norm.
    """

    places: list[tuple[Int, ir.Value | None]]
    totals: list[list[Int]]
    scaled: list[list[Int]]


def norm_of_row(
    row: Row, dtype: str, eps: float, thread: Int, x: Int, delta: Int | None, gain: Int, shared: Int
) -> NormOfRow:
    """Add and normalize one token; all threads of the block take part.

    Args:
        x, delta, gain: addresses of the token's values and of the layer's weights.
        shared: address of room for a float of each warp, which nothing else uses meanwhile.
    """
    places = [_place(row, thread, chunk) for chunk in range(row.chunks)]
    values = [_load(x, place) for place, _ in places]
    deltas = [] if delta is None else [_load(delta, place) for place, _ in places]
    weights = [_load(gain, place) for place, _ in places]
    if delta is not None:
        pairs = [zip(a, b, strict=True) for a, b in zip(values, deltas, strict=True)]
        values = [[ptx.pair_op("add", a, b, dtype) for a, b in pair] for pair in pairs]
    scale = (_sum_of_block(row, thread, shared, _squares(values, places, dtype)) * (1.0 / row.size) + eps).rsqrt()
    scaled = [
        [ptx.pair_op("mul", _scaled(word, scale, dtype), factor, dtype) for word, factor in zip(*words, strict=True)]
        for words in zip(values, weights, strict=True)
    ]
    return NormOfRow(places, values, scaled)


def _place(row: Row, thread: Int, chunk: int) -> tuple[Int, ir.Value | None]:
    """See NormOfRow."""
    piece = thread + chunk * row.threads
    if (chunk + 1) * row.threads <= row.pieces:
        return piece, None
    return ptx_sync.minimum(piece, row.pieces - 1), piece < row.pieces


def _address(base: Int, piece: Int) -> Int:
    return base + piece.wide() * (2 * _EACH)


def _load(base: Int, place: Int) -> list[Int]:
    return ptx_sync.load_global_words(_address(base, place), 4)


def _store(base: Int, places: list[tuple[Int, ir.Value | None]], values: list[list[Int]]) -> None:
    for (place, inside), words in zip(places, values, strict=True):
        if inside is None:
            ptx_sync.store_global(_address(base, place), *words)
        else:
            with ptx_sync.when(inside):
                ptx_sync.store_global(_address(base, place), *words)


def _squares(values: list[list[Int]], places: list[tuple[Int, ir.Value | None]], dtype: str) -> Number:
    """Sum over the pieces of this thread."""
    total = Number(0.0)
    for (_, inside), words in zip(places, values, strict=True):
        before = total
        for number in (n for word in words for n in unpack_pair(word, dtype)):
            total = number.fma(number, total)
        total = total if inside is None else total.select(inside, before)
    return total


def _sum_of_block(row: Row, thread: Int, shared: Int, total: Number) -> Number:
    """The same sum in every thread."""
    for mask in (16, 8, 4, 2, 1):
        total = total + total.from_lane_xor(mask)
    with ptx_sync.when(ptx_sync.equal(thread % 32, 0)):
        ptx.store_shared(shared + thread // 32 * 4, total.value)
    ptx.sync_block()
    parts = [
        Number(ptx.as_float(word))
        for group in range(row.warpgroups)
        for word in ptx.load_shared(shared + group * 16, 4)
    ]
    while len(parts) > 1:
        parts = [functools.reduce(Number.__add__, parts[i : i + 2]) for i in range(0, len(parts), 2)]
    return parts[0]


def _scaled(word: Int, scale: Number, dtype: str) -> Int:
    """Both values of a word times a number, rounded."""
    low, high = unpack_pair(word, dtype)
    return ptx.pack_pair((low * scale).value, (high * scale).value, dtype)
