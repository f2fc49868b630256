"""The heads' change of basis on Hopper, for the few tokens of a decode step: the time is latency, so everything is loaded at once.

Heads that share a matrix are its columns: of each token the queries of a KV head, one key, all values. A tile is a matrix with 8
or 16 columns, and a warp owns 32 outputs of it, from load to store, and asks no other warp for anything::

    each warp   load the layer's number, its columns, their angles, then its part of the matrix (H x 32, all in registers)
                turn (queries and keys), round -> multiply by mma -> scale, round -> store to q, k or v

Tiles of q, k and v differ in addresses alone, so all threads run the same instructions; values that stay as they are pass through
from load to store. Without RoPE the same code multiplies all heads by one matrix.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxtyping import Array, Float, Int32

from pallas_kernels import ptx, ptx_sync
from pallas_kernels.device import reason_not_hopper
from pallas_kernels.head_basis.tiles import COLUMNS, OUTPUTS, WARPS, Group, Shape, Tile, pick
from pallas_kernels.head_basis.warp_multiply import load_angles, load_column, load_matrix, multiply, turn
from pallas_kernels.ptx import Int, constant
from pallas_kernels.ptx_float import Float as Number

_HEAD_DIMS = (64, 128)


def reason_not(x: Float[Array, "T N H"], matrices: Sequence[Array]) -> str | None:
    """Why this kernel can't take a call with these heads; None if it can."""
    if reason := reason_not_hopper():
        return reason
    dtypes = [str(a.dtype) for a in (x, *matrices)]
    if dtypes[0] not in ptx.SHORT_NAMES or len(set(dtypes)) > 1:
        return f"heads and matrices of {', '.join(dtypes)} must all be bfloat16 or all float16"
    if x.shape[-1] not in _HEAD_DIMS:
        return f"head_dim={x.shape[-1]} must be one of {_HEAD_DIMS}"
    return None


def turn_heads(x: Float[Array, "T N H"], matrix: Float[Array, "H H"], *, divisor: float) -> Float[Array, "T N H"]:
    """As ``turn_heads_reference``, by the kernel."""
    tokens, heads, head_dim = x.shape
    shape = Shape(tokens, (Group(1, heads),), head_dim, ptx.SHORT_NAMES[str(x.dtype)], divisor)
    return _call(shape)(x, matrix)[0]


def rope_change_basis(
    qkv: Float[Array, "T M H"],
    cos: Float[Array, "T F"],
    sin: Float[Array, "T F"],
    for_queries: Float[Array, "L K H H"],
    for_keys: Float[Array, "L K H H"],
    layer: Int32[Array, ""],
    for_values: Float[Array, "H H"] | None,
    *,
    divisor: float,
) -> tuple[Float[Array, "T N H"], Float[Array, "T K H"], Float[Array, "T K H"]]:
    """As ``rope_change_basis_reference``, by the kernel."""
    tokens, all_heads, head_dim = qkv.shape
    kv_heads = for_keys.shape[1]
    groups = Group(kv_heads, all_heads // kv_heads - 2), Group(kv_heads, 1), Group(1, kv_heads)
    dtype = ptx.SHORT_NAMES[str(qkv.dtype)]
    shape = Shape(tokens, groups, head_dim, dtype, divisor, turns_values=for_values is not None)
    matrices = (for_queries, for_keys) if for_values is None else (for_queries, for_keys, for_values)
    return _call(shape)(qkv, cos, sin, layer.reshape(1), *matrices)


@functools.lru_cache(maxsize=256)
def _call(shape: Shape):
    def head_basis(*refs):
        def emit(*buffers):
            emit_warp(shape, [ptx.global_address(b) for b in buffers])

        ptx_sync.run_inline(emit, [plgpu.RefType() for _ in refs], *refs)

    dtype = next(name for name, short in ptx.SHORT_NAMES.items() if short == shape.dtype)
    return jax.jit(
        plgpu.kernel(
            head_basis,
            out_type=tuple(
                jax.ShapeDtypeStruct((shape.tokens, g.width, shape.head_dim), jnp.dtype(dtype)) for g in shape.groups
            ),
            grid=(shape.blocks,),
            grid_names=("block",),
            num_threads=WARPS // 4,
            thread_name="warpgroup",
            compiler_params=ptx.compiler_params(),
        )
    )


def emit_warp(shape: Shape, addresses: list[Int]) -> None:
    """The code of a warp.

    Args:
        shape: sizes.
        addresses: of the heads; with RoPE of cos, sin and the layer's number; of the groups' matrices; of each group's output.
    """
    head_dim, row_bytes, dtype = shape.head_dim, 2 * shape.head_dim, shape.dtype
    outputs, (x, *given) = addresses[-len(shape.groups) :], addresses[: -len(shape.groups)]
    layer = ptx.load_global(given[2]) if shape.ropes else constant(0)
    thread = ptx.thread_index()
    lane, warp = thread % 32, ptx.block_index() * WARPS + thread // 32
    g, t, strip = lane // 4, lane % 4, warp % shape.warps_per_tile
    tile = Tile(shape, warp // shape.warps_per_tile)
    starts = range(0, shape.columns, COLUMNS)
    places = [tile.place(g + start) for start in starts]
    columns = [load_column(x + place.head.wide() * row_bytes, t, head_dim) for place in places]
    angles = []
    if shape.ropes:
        tokens = [place.token.wide() * row_bytes for place in places]
        angles = [[load_angles(table + token, t, head_dim) for table in given[:2]] for token in tokens]
    rows = load_matrix(tile.matrix(given[3:] if shape.ropes else given, layer), g, t, strip, head_dim)
    out = tile.pick(outputs)
    turned = columns
    if shape.ropes:
        turned = [turn(column, cos, sin, dtype) for column, (cos, sin) in zip(columns, angles, strict=True)]
        turned = [_choose(tile.of_last, *pair) for pair in zip(columns, turned, strict=True)]
    multiplied = None
    if not shape.turns_values:
        multiplied = tile.number < shape.ends[-2]
        for place, column in zip(places, columns, strict=True):
            # Of the four chunks that each warp holds it stores one.
            words = [pick(strip, list(chunks)) for chunks in zip(*column, strict=True)]
            with ptx_sync.when(ptx_sync.both(tile.of_last, place.inside)):
                at = place.out_head.wide() * row_bytes + (strip * (2 * OUTPUTS) + t * 16).wide()
                ptx_sync.store_global(out + at, *words)
    scale = Number(1.0 / shape.divisor).select(tile.of_last, 1.0)
    for start, products in zip(starts, multiply(turned, rows, dtype), strict=True):
        for i, numbers in enumerate(products):
            place = tile.place(t * 2 + (start + i))
            a, b, c, d = ((number * scale).value for number in numbers)
            with ptx_sync.when(place.inside if multiplied is None else ptx_sync.both(multiplied, place.inside)):
                at = place.out_head.wide() * row_bytes + (strip * (2 * OUTPUTS) + g * 8).wide()
                ptx_sync.store_global(out + at, ptx.pack_pair(a, b, dtype), ptx.pack_pair(c, d, dtype))


def _choose(condition: ir.Value, then: list[list[Int]], otherwise: list[list[Int]]) -> list[list[Int]]:
    return [
        [a.select(condition, b) for a, b in zip(*words, strict=True)] for words in zip(then, otherwise, strict=True)
    ]
