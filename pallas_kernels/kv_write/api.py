"""Shapes, errors and the choice of implementation of the KV write."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Num

from pallas_kernels.kv_write import mosaic
from pallas_kernels.kv_write.reference import quantize_heads, scatter_reference

BITS = (16, 8, 4)
IMPLEMENTATIONS = ("mosaic", "reference")
"""The kernel is taken by name only until it has been measured against XLA's scatter on a GPU."""


def kv_write(
    pages: Num[Array, "L P K page Hs"],
    pairs: Float[Array, "L P K page 2"] | None,
    new: Float[Array, "T K H"],
    layer: Int32[Array, ""],
    page_ids: Int32[Array, " T"],
    offsets: Int32[Array, " T"],
    *,
    bits: int,
    implementation: str | None = None,
) -> tuple[Num[Array, "L P K page Hs"], Float[Array, "L P K page 2"] | None]:
    """Quantize (``bits`` 8 or 4) and store the keys or values of T new tokens.

    Args:
        pages: the pool of one of K and V; donate it, the write is in place then.
        pairs: its (scale, offset) pool; None for bits 16.
        new: keys after RoPE, or values.
        layer: which layer's pages.
        page_ids: page of each token; P drops the row (padding).
        offsets: place of each token in its page.
        bits: 16 stores ``new`` in the pool's dtype.
        implementation: name one of IMPLEMENTATIONS to fail if it can't; None is the reference, which XLA compiles.

    Raises:
        ValueError: an unknown ``bits`` or a pool whose last axis doesn't hold H values of that width; an unknown implementation
            or one that can't take the call.
    """
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"{implementation=} is unknown; there are {IMPLEMENTATIONS}")
    if bits not in BITS:
        raise ValueError(f"{bits=} must be one of {BITS}")
    stored = new.shape[-1] * min(bits, 8) // 8
    if pages.shape[-1] != stored:
        raise ValueError(
            f"head_dim {new.shape[-1]} at {bits=} takes {stored} values a head, the pool has {pages.shape[-1]}"
        )
    layer = jnp.asarray(layer, jnp.int32)
    if bits != 16 and pairs is None:
        raise ValueError(f"{bits=} needs the pool of (scale, offset) pairs")
    if implementation == "mosaic":
        if reason := mosaic.reason_not(pages, new, bits):
            raise ValueError(f"{implementation=} can't take this call: {reason}")
        return mosaic.write(pages, None if bits == 16 else pairs, new, layer, page_ids, offsets, bits=bits)
    if bits == 16 or pairs is None:
        return scatter_reference(pages, new, layer, page_ids, offsets), None
    q, pair = quantize_heads(new, bits=bits)
    return (
        scatter_reference(pages, q, layer, page_ids, offsets),
        scatter_reference(pairs, pair, layer, page_ids, offsets),
    )
