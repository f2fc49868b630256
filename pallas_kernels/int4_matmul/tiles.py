"""The stored layout of the GPU kernels: int4 weights in the order in which the threads of a warp feed them to the tensor cores.

A tile is 16 outputs (a strip) by 128 inputs, 1 KiB of ``words``: two halves of 64 inputs, each 32 lanes x 16 bytes, so that a warp
reads a half with one 16-byte load a lane. Word s of lane l (s = 4 * half + position) is the lane's share of the A operand of
``mma.m16n8k16`` (``wgmma`` has the same) for inputs 16s .. 16s + 15: with row r = l // 4 and column c = 2 * (l % 4),

    register 0: (r, c), (r, c + 1)      register 1: (r + 8, c), (r + 8, c + 1)
    register 2: (r, c + 8), (r, c + 9)  register 3: (r + 8, c + 8), (r + 8, c + 9)

nibble i of the word is the first value of register i and nibble i + 4 the second, so ``(word >> 4i) & 0x000f000f`` is register i.

``meta`` holds a word for each output and group of a tile: the scale as float32 with the zero point in its lowest 4 bits. A scale
that came as bfloat16 or float16 has zeros there, so nothing is lost. A group that spans tiles is repeated in each.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int32, UInt8

from pallas_kernels.int4_matmul.reference import unpack_int4

STRIP = 16
"""Outputs of a tile: the rows of an mma operand."""
BLOCK = 128
"""Inputs of a tile."""
TURN = 8
"""Outputs of a gate, and of what it gates, one after the other."""
TILE_WORDS = STRIP * BLOCK // 8
_SCALE_BITS = np.uint32(0xFFFFFFF0)


def padded(outputs: int, inputs: int) -> tuple[int, int]:
    """Outputs and inputs that are stored: whole tiles."""
    return -(-outputs // STRIP) * STRIP, -(-inputs // BLOCK) * BLOCK


def groups_per_tile(group_size: int) -> int:
    """Scales that an output has in one tile: as many as keep each scale's inputs inside one group.

    Raises:
        ValueError: a group size that is no multiple of 16, the inputs of one tensor core instruction.
    """
    if group_size < 16 or group_size % 16:
        raise ValueError(f"{group_size=} must be a multiple of 16")
    return BLOCK // math.gcd(BLOCK, group_size)


def to_tiles(
    packed: UInt8[Array, "N Kh"], scale: Float[Array, "Kg N"], zero: UInt8[Array, "Kg N"], *, group_size: int
) -> tuple[Int32[Array, "Ns Kb 256"], Int32[Array, "Ns Kb Gt 16"]]:
    """Reorder one matrix; missing outputs and inputs of the last tiles are zeros with scale 0."""
    n, k = packed.shape[0], 2 * packed.shape[1]
    outputs, inputs = padded(n, k)
    q = jnp.pad(unpack_int4(packed), ((0, outputs - n), (0, inputs - k))).astype(jnp.uint32)
    # rows: (strip, half, r); columns: (block, step, half, quad, pair)
    q = q.reshape(outputs // 16, 2, 8, inputs // 128, 8, 2, 4, 2)
    nibble = jnp.arange(4, dtype=jnp.uint32).reshape(2, 2)  # [column half, row half]: register
    low = q[..., 0].transpose(0, 3, 4, 2, 6, 5, 1)  # strip, block, step, r, quad, column half, row half
    high = q[..., 1].transpose(0, 3, 4, 2, 6, 5, 1)
    words = (low << (4 * nibble) | high << (4 * nibble + 16)).sum(axis=(-2, -1), dtype=jnp.uint32)
    words = words.reshape(outputs // 16, inputs // 128, 2, 4, 32).transpose(0, 1, 2, 4, 3)  # half, lane, position
    per_tile = groups_per_tile(group_size)
    bits = lax.bitcast_convert_type(scale.astype(jnp.float32), jnp.uint32)
    meta = (bits & _SCALE_BITS) | zero.astype(jnp.uint32)
    meta = jnp.repeat(meta, group_size * per_tile // BLOCK, axis=0)
    meta = jnp.pad(meta, ((0, inputs // BLOCK * per_tile - meta.shape[0]), (0, outputs - n)))
    meta = meta.reshape(inputs // BLOCK, per_tile, outputs // 16, 16).transpose(2, 0, 1, 3)
    as_int = lambda a: lax.bitcast_convert_type(a, jnp.int32)  # noqa: E731
    return as_int(words.reshape(outputs // 16, inputs // 128, TILE_WORDS)), as_int(meta)


def from_tiles(
    words: Int32[Array, "Ns Kb 256"],
    meta: Int32[Array, "Ns Kb Gt 16"],
    *,
    outputs: int,
    inputs: int,
    group_size: int,
    dtype,
) -> tuple[UInt8[Array, "N Kh"], Float[Array, "Kg N"], UInt8[Array, "Kg N"]]:
    """The matrix as it was before ``to_tiles``: packed, scale (in ``dtype``) and zero."""
    strips, blocks = words.shape[:2]
    w = lax.bitcast_convert_type(words, jnp.uint32).reshape(strips, blocks, 2, 32, 4).transpose(0, 1, 2, 4, 3)
    w = w.reshape(strips, blocks, 8, 8, 4)  # strip, block, step, r, quad
    shifts = 4 * jnp.arange(4, dtype=jnp.uint32).reshape(2, 2)
    low = (w[..., None, None] >> shifts) & 0xF
    high = (w[..., None, None] >> (shifts + 16)) & 0xF
    q = jnp.stack([low, high], axis=-1)  # strip, block, step, r, quad, column half, row half, pair
    q = q.transpose(0, 6, 3, 1, 2, 5, 4, 7).reshape(strips * 16, blocks * 128)[:outputs, :inputs].astype(jnp.uint8)
    packed = q[:, 0::2] | (q[:, 1::2] << 4)
    bits = lax.bitcast_convert_type(meta, jnp.uint32).transpose(1, 2, 0, 3).reshape(-1, strips * 16)
    bits = bits[:: group_size * meta.shape[2] // BLOCK][: inputs // group_size, :outputs]
    scale = lax.bitcast_convert_type(bits & _SCALE_BITS, jnp.float32).astype(dtype)
    return packed, scale, (bits & 0xF).astype(jnp.uint8)


def interleave(rows: Array, axis: int) -> Array:
    """Outputs of a gate, then as many of what it gates: in turns of 8, what gated kernels read.

    A strip then has 8 of each, and what a thread of a matmul holds of it (outputs r and r + 8) is a gate's and what that gates.

    Raises:
        ValueError: no whole turns.
    """
    return _swapped(rows, axis, (2, -1, TURN))


def separate(rows: Array, axis: int) -> Array:
    """The inverse of ``interleave``."""
    return _swapped(rows, axis, (-1, 2, TURN))


def _swapped(rows: Array, axis: int, parts: tuple[int, int, int]) -> Array:
    count = rows.shape[axis]
    if count % (2 * TURN):
        raise ValueError(f"{count} outputs are no gate and as many gated ones in turns of {TURN}")
    shape = (*rows.shape[:axis], *parts, *rows.shape[axis + 1 :])
    return jnp.swapaxes(rows.reshape(shape), axis, axis + 1).reshape(rows.shape)


def gate(products: Float[Array, "M N"]) -> Float[Array, "M Nh"]:
    """``silu(gate) * up`` of outputs in turns of 8."""
    m, n = products.shape
    turns = products.reshape(m, n // (2 * TURN), 2, TURN)
    return (jax.nn.silu(turns[:, :, 0]) * turns[:, :, 1]).reshape(m, n // 2)
