"""The KV write on Hopper: one kernel turns queries and keys, quantizes keys and values, and stores them where they belong.

A warp takes one head of one token, from load to store, and asks no other warp for anything::

    query   load 8 values a thread, their partners, cos, sin -> turn, round -> store to the output
    key     the same                                         -> turn, round -> quantize -> store to a page of K
    value   load                                             ->                quantize -> store to a page of V

RoPE turns value i with value i + H/2: a thread loads its partners too, the second load of the same lines, instead of waiting for
another thread's. The pools are passed as mutable references, so the kernel writes into them and into nothing else. Without RoPE
(keys and values come as they are to be stored) the same code does the last two lines.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int32

from pallas_kernels import ptx, ptx_sync
from pallas_kernels.device import reason_not_hopper
from pallas_kernels.kv_write.reference import Pools
from pallas_kernels.kv_write.warp_quantize import pack, quantize_warp
from pallas_kernels.ptx import Int, constant
from pallas_kernels.ptx_float import Float as Number
from pallas_kernels.ptx_float import unpack_pair

_EACH = 8
"""Values of a thread: 16 bytes of bfloat16, the widest load."""
_WARPS = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a call. ``heads`` are those of the queries to turn, 0 where keys and values come as they are stored."""

    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str  # bf16 or f16
    layers: int
    pages: int
    page_size: int
    bits: int

    @property
    def warps(self) -> int:
        """Heads of all tokens."""
        return self.tokens * (self.heads + 2 * self.kv_heads)


def reason_not(pools: Pools, new: Float[Array, "T N H"], bits: int, *, turned: bool) -> str | None:
    """Why this kernel can't take a call with these new heads; None if it can. ``turned``: it is to do RoPE."""
    if reason := reason_not_hopper():
        return reason
    if str(new.dtype) not in ptx.SHORT_NAMES or (bits == 16 and pools.k.dtype != new.dtype):
        return (
            f"new tokens of {new.dtype} for pages of {pools.k.dtype} must be bfloat16 or float16, "
            "as pages of 16 bits are"
        )
    multiple = 2 * _EACH if turned else _EACH
    if new.shape[-1] % multiple or new.shape[-1] > 32 * _EACH:
        return f"head_dim={new.shape[-1]} must be a multiple of {multiple} up to {32 * _EACH}"
    return None


def kv_write(
    pools: Pools,
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    layer: Int32[Array, ""],
    page_ids: Int32[Array, " T"],
    offsets: Int32[Array, " T"],
    *,
    bits: int,
) -> Pools:
    """As ``kv_write_reference``, by the kernel; in place where the pools are donated."""
    return _run(pools, (k, v), 0, layer, page_ids, offsets, bits)[1]


def rope_kv_write(
    pools: Pools,
    qkv: Float[Array, "T M H"],
    cos: Float[Array, "T F"],
    sin: Float[Array, "T F"],
    layer: Int32[Array, ""],
    page_ids: Int32[Array, " T"],
    offsets: Int32[Array, " T"],
    *,
    bits: int,
) -> tuple[Float[Array, "T N H"], Pools]:
    """As ``rope_kv_write_reference``, by the kernel; in place where the pools are donated."""
    heads = qkv.shape[1] - 2 * pools.k.shape[2]
    (q,), pools = _run(pools, (qkv, cos, sin), heads, layer, page_ids, offsets, bits)
    return q, pools


def _run(pools: Pools, new: tuple[jax.Array, ...], heads: int, layer, page_ids, offsets, bits: int):
    """The turned queries (none if ``heads`` is 0), and the pools."""
    layers, pages, kv_heads, page_size, _ = pools.k.shape
    tokens, _, head_dim = new[0].shape
    dtype = ptx.SHORT_NAMES[str(new[0].dtype)]
    shape = Shape(tokens, heads, kv_heads, head_dim, dtype, layers, pages, page_size, bits)
    refs = jax.tree.map(jax.new_ref, pools)
    queries = _call(shape)(*new, layer.reshape(1), page_ids, offsets, *jax.tree.leaves(refs))
    return queries, jax.tree.map(jax.freeze, refs)


@functools.lru_cache(maxsize=256)
def _call(shape: Shape):
    def kv_write(*refs):
        def emit(*buffers):
            emit_warp(shape, [ptx.global_address(b) for b in buffers])

        ptx_sync.run_inline(emit, [plgpu.RefType() for _ in refs], *refs)

    dtype = next(name for name, short in ptx.SHORT_NAMES.items() if short == shape.dtype)
    queries = jax.ShapeDtypeStruct((shape.tokens, shape.heads, shape.head_dim), jnp.dtype(dtype))
    return jax.jit(
        plgpu.kernel(
            kv_write,
            out_type=(queries,) if shape.heads else (),
            grid=(-(-shape.warps // _WARPS),),
            grid_names=("block",),
            num_threads=1,
            thread_name="warpgroup",
            compiler_params=ptx.compiler_params(),
        )
    )


def emit_warp(shape: Shape, addresses: list[Int]) -> None:
    """The code of a warp.

    Args:
        shape: sizes.
        addresses: of qkv, cos and sin or else of k and v; of layer, page ids and offsets; of the pools in the order of ``Pools``;
            of the output if there are queries.
    """
    heads, kv_heads, head_dim, bits = shape.heads, shape.kv_heads, shape.head_dim, shape.bits
    given, row_bytes = 3 if heads else 2, 2 * head_dim
    new, (layer, page_ids, offsets, k_pool, v_pool, *rest) = addresses[:given], addresses[given:]
    thread = ptx.thread_index()
    lane, number = thread % 32, ptx.block_index() * _WARPS + thread // 32
    token, head = number // (heads + 2 * kv_heads), number % (heads + 2 * kv_heads)
    kv_head, of_values = (head - heads) % kv_heads, constant(heads + kv_heads - 1) < head
    with ptx_sync.when(number < shape.warps):
        page, place, layer = (ptx.load_global(a) for a in (_entry(page_ids, token), _entry(offsets, token), layer))
        # Threads past the head's end repeat its last values: minimum and maximum stay what they are.
        part, mine = ptx_sync.minimum(lane, head_dim // _EACH - 1), lane < head_dim // _EACH
        column = part.wide() * (2 * _EACH)
        # As the reference drops what lies outside of a pool. And it makes the compiler load all three before the branch.
        kept = ptx_sync.both(page < shape.pages, ptx_sync.both(place < shape.page_size, layer < shape.layers))
        if heads:
            words = _turn(shape, new, number, token, part, of_values)
            with ptx_sync.when(ptx_sync.both(mine, head < heads)):
                ptx_sync.store_global(rest[-1] + (token * heads + head).wide() * row_bytes + column, *words)
            kept = ptx_sync.both(constant(heads - 1) < head, kept)
        else:
            base = new[1].select(of_values, new[0]) + (token * kv_heads + kv_head).wide() * row_bytes
            words = ptx_sync.load_global_words(base + column, 4)
        row = ((layer.wide() * shape.pages + page.wide()) * kv_heads + kv_head.wide()) * shape.page_size + place.wide()
        pool = v_pool.select(of_values, k_pool)
        with ptx_sync.when(kept):
            if bits == 16:
                with ptx_sync.when(mine):
                    ptx_sync.store_global(pool + row * row_bytes + column, *words)
                return
            x = [v for word in words for v in unpack_pair(word, shape.dtype)]
            integers, pair = quantize_warp(x, bits, mine, head_dim)
            with ptx_sync.when(mine):
                stored = part.wide() * (_EACH * bits // 8)
                ptx_sync.store_global(pool + row * (head_dim * bits // 8) + stored, *pack(integers, bits))
            with ptx_sync.when(ptx_sync.equal(lane, 0)):
                ptx_sync.store_global(rest[1].select(of_values, rest[0]) + row * 4, pair)


def _entry(array: Int, index: Int) -> Int:
    """Address of a 32-bit entry."""
    return array + index.wide() * 4


def _turn(shape: Shape, new: list[Int], number: Int, token: Int, part: Int, of_values) -> list[Int]:
    """This thread's words of one head of qkv, after RoPE where it is a query or a key."""
    qkv, cos, sin = new
    parts = shape.head_dim // _EACH
    row = qkv + number.wide() * (2 * shape.head_dim)
    own, partner = (
        ptx_sync.load_global_words(row + p.wide() * (2 * _EACH), 4) for p in (part, (part + parts // 2) % parts)
    )
    angle = (token * (parts // 2) + part % (parts // 2)).wide() * (4 * _EACH)
    cosines, sines = (
        [Number(ptx.as_float(w)) for i in (0, 16) for w in ptx_sync.load_global_words(table + angle + i, 4)]
        for table in (cos, sin)
    )
    first_half = part < parts // 2
    x, y = ([v for word in words for v in unpack_pair(word, shape.dtype)] for words in (own, partner))
    turned = []
    for value, other, c, s in zip(x, y, cosines, sines, strict=True):
        turned.append(value * c + other * (s * -1.0).select(first_half, s))
    words = [ptx.pack_pair(a.value, b.value, shape.dtype) for a, b in zip(turned[::2], turned[1::2], strict=True)]
    return [word.select(of_values, turned_word) for word, turned_word in zip(own, words, strict=True)]
