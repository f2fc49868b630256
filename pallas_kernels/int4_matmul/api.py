"""Shapes, errors and the choice of implementation of the int4 matmul.

There are two stored layouts: rows, as checkpoints are read (``int4_matmul``, for every platform), and tiles, which the GPU kernels
read (``int4_matmul_tiles``).
"""

import warnings
from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32, UInt8

from pallas_kernels.device import HOPPER, gpu_capability
from pallas_kernels.int4_matmul.reference import int4_matmul_reference
from pallas_kernels.int4_matmul.tiles import from_tiles, gate, padded

IMPLEMENTATIONS = ("reference",)
TILE_IMPLEMENTATIONS = ("warp", "wgmma", "stream", "reference")
OLDEST_GPU = (8, 0)
"""Compute capability of the warp kernel: bfloat16 mma and asynchronous copies. ``wgmma`` and ``stream`` are (9, 0)'s alone."""


def int4_matmul(
    x: Float[Array, "*batch K"],
    packed: UInt8[Array, "L N Kh"],
    scale: Float[Array, "L Kg N"],
    zero: UInt8[Array, "L Kg N"],
    layer: Int32[Array, ""] | int,
    *,
    group_size: int,
    implementation: str | None = None,
) -> Float[Array, "*batch N"]:
    """Multiply activations with layer ``layer`` of a stack of packed int4 matrices.

    Args:
        x: activations, float32, bfloat16 or float16.
        packed: q in 0..15, two to a byte, input 2j in the low nibble of byte j.
        scale: one per group of ``group_size`` inputs and output.
        zero: zero points 0..15.
        layer: which matrix of the stack; may be traced.
        group_size: G; must divide K.
        implementation: name one of IMPLEMENTATIONS to fail if it can't; None takes the first that can.

    Returns:
        ``x @ w[layer].T`` in the dtype of x.

    Raises:
        ValueError: shapes that don't fit each other, or an unknown implementation.
    """
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"{implementation=} is unknown; there are {IMPLEMENTATIONS}")
    k, n = x.shape[-1], packed.shape[-2]
    if 2 * packed.shape[-1] != k:
        raise ValueError(f"x has {k} inputs but the packed weight holds {2 * packed.shape[-1]}")
    if group_size < 1 or k % group_size:
        raise ValueError(f"{k=} inputs must be divisible by {group_size=}")
    groups = (packed.shape[0], k // group_size, n)
    if scale.shape != groups or zero.shape != groups:
        raise ValueError(f"scale and zero must be [L, Kg, N] = {groups}, found {scale.shape} and {zero.shape}")

    def of_layer(stack):
        return lax.dynamic_index_in_dim(stack, jnp.asarray(layer, jnp.int32), 0, keepdims=False)

    out = int4_matmul_reference(
        x.reshape(-1, k), of_layer(packed), of_layer(scale), of_layer(zero), group_size=group_size
    )
    return out.reshape(*x.shape[:-1], n)


def int4_matmul_tiles(
    x: Float[Array, "*batch K"],
    words: Int32[Array, "L Ns Kb 256"],
    meta: Int32[Array, "L Ns Kb Gt 16"],
    layer: Int32[Array, ""] | int,
    *,
    outputs: int,
    group_size: int,
    gated: bool = False,
    invariant: bool = False,
    implementation: str | None = None,
) -> Float[Array, "*batch N"]:
    """Multiply activations with layer ``layer`` of a stack of int4 matrices stored as tiles.

    Args:
        x: activations, bfloat16 or float16 (float32 takes the reference).
        words, meta: see ``tiles.to_tiles``.
        layer: which matrix of the stack; may be traced.
        outputs: N.
        group_size: G.
        gated: outputs are those of a gate and of what it gates in turn (``tiles.interleave``); N counts both, and
            ``silu(gate) * up``, N / 2 wide, is returned.
        invariant: a token's result does not depend on the batch it is in, to the bit: one kernel for all M, cut the same way.
        implementation: name one of TILE_IMPLEMENTATIONS to fail if it can't; None takes the fastest that can on this GPU.

    Returns:
        ``x @ w[layer].T`` in the dtype of x.

    Raises:
        ValueError: shapes that don't fit each other, an unknown implementation, or one that can't run this shape.
    """
    if implementation not in (None, *TILE_IMPLEMENTATIONS):
        raise ValueError(f"{implementation=} is unknown; there are {TILE_IMPLEMENTATIONS}")
    k = x.shape[-1]
    strips, blocks = (size // part for size, part in zip(padded(outputs, k), (16, 128), strict=True))
    if words.shape[1:] != (strips, blocks, 256) or meta.shape[:3] != words.shape[:3]:
        raise ValueError(
            f"{outputs} outputs and {k} inputs take tiles [L, {strips}, {blocks}, 256], found {words.shape} and {meta.shape}"
        )
    flat = x.reshape(-1, k)
    layer = jnp.asarray(layer, jnp.int32)
    reference = partial(_tiles_reference, outputs=outputs, group_size=group_size, gated=gated)
    kernel = _tile_kernel(flat, outputs, group_size, gated, invariant, implementation)
    if kernel is None:
        out = reference(flat, words, meta, layer)
    elif implementation is not None:
        out = kernel(flat, words, meta, layer)
    else:
        out = lax.platform_dependent(flat, words, meta, layer, cuda=kernel, default=reference)
    return out.reshape(*x.shape[:-1], outputs // 2 if gated else outputs)


def _tiles_reference(x, words, meta, layer, *, outputs: int, group_size: int, gated: bool):
    words, meta = (lax.dynamic_index_in_dim(a, layer, 0, keepdims=False) for a in (words, meta))
    matrix = from_tiles(words, meta, outputs=outputs, inputs=x.shape[1], group_size=group_size, dtype=x.dtype)
    out = int4_matmul_reference(x, *matrix, group_size=group_size)
    return gate(out) if gated else out


def _tile_kernel(x, outputs: int, group_size: int, gated: bool, invariant: bool, implementation: str | None):
    """The kernel as a function of (x, words, meta, layer), or None for the reference."""
    if implementation == "reference" or x.dtype not in (jnp.bfloat16, jnp.float16):
        if implementation in ("warp", "wgmma", "stream"):
            raise ValueError(f"{implementation=} takes bfloat16 or float16 activations, found {x.dtype}")
        return None
    # Here, not above: on a machine without a GPU nobody pays for Mosaic.
    from pallas_kernels.int4_matmul import choice

    capability = gpu_capability()
    shape = choice.Shape(x.shape[0], x.shape[1], outputs, group_size)
    wgmma = capability[0] == HOPPER[0]
    if implementation in ("wgmma", "stream") and not wgmma:
        raise ValueError(f"{implementation=} needs a Hopper GPU; this one has compute capability {capability}")
    if invariant and implementation in ("warp", "stream"):
        raise ValueError(f"{implementation=} is cut by the batch; {invariant=} has wgmma or the reference for all")
    if capability < OLDEST_GPU:
        warnings.warn(
            f"int4 matmuls run de-quantized: compute capability {capability} is older than {OLDEST_GPU}", stacklevel=3
        )
        return None
    if invariant:
        config = choice.invariant_config(shape) if wgmma else None
    elif implementation == "warp":
        config = choice.warp_rule(shape, capability)
    elif implementation == "wgmma":
        config = choice.wgmma_rule(shape)
    elif implementation == "stream":
        config = choice.stream_rule(shape)
    else:
        config = choice.choose(shape, capability=capability)
    if config is None:
        if implementation is not None:
            raise ValueError(f"{implementation=} can't run {shape}")
        return None

    kernel = partial(choice.kernel_of(config), outputs=outputs, gated=gated)
    return lambda x, words, meta, layer: kernel(x, words, meta, layer.reshape(1))
