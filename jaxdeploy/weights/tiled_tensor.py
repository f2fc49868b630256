"""The packed int4 weight as the GPU's kernels read it: tiles instead of rows."""

from functools import partial

import flax.struct
import jax
from jax import lax

from jaxdeploy.pytree import Leaf
from jaxdeploy.weights.quant_tensor import QuantTensor
from pallas_kernels.int4_matmul.tiles import from_tiles, interleave_strips, separate_strips, to_tiles

_STRIP_AXIS = 1


@flax.struct.dataclass
class TiledTensor:
    """A stack of int4 matrices in the layout of ``pallas_kernels.int4_matmul.tiles``; a QuantTensor says the same in rows.

    Attributes:
        words, meta: the tiles.
        perm: see QuantTensor.
        group_size: G, inputs that share a scale.
        outputs, inputs: N and K, before they were filled up to whole tiles.
        gated: outputs are those of a gate and of what it gates, in turns of 16; see ``int4_matmul_tiles``.
        scale_dtype: of the scales, to give them back.
    """

    words: Leaf  # int32 [L, Ns, Kb, 256]
    meta: Leaf  # int32 [L, Ns, Kb, Gt, 16]
    perm: Leaf | None = None  # int32 [L, K]
    group_size: int = flax.struct.field(pytree_node=False, default=128)
    outputs: int = flax.struct.field(pytree_node=False, default=0)
    inputs: int = flax.struct.field(pytree_node=False, default=0)
    gated: bool = flax.struct.field(pytree_node=False, default=False)
    scale_dtype: str = flax.struct.field(pytree_node=False, default="bfloat16")

    def in_rows(self) -> QuantTensor:
        """The same matrices as a QuantTensor, to the bit."""
        words, meta = self.words, self.meta
        if self.gated:
            words, meta = separate_strips(words, _STRIP_AXIS), separate_strips(meta, _STRIP_AXIS)
        restore = partial(
            from_tiles, outputs=self.outputs, inputs=self.inputs, group_size=self.group_size, dtype=self.scale_dtype
        )
        packed, scale, zero = lax.map(lambda tiles: restore(*tiles), (words, meta))
        return QuantTensor(packed, scale, zero, self.perm, self.group_size)


def can_tile(weight: QuantTensor) -> bool:
    """Do the kernels take this stack? They need an even number of outputs, inputs by 8, and groups of whole instructions."""
    return (
        weight.packed.ndim == 3
        and weight.group_size % 16 == 0
        and weight.in_features % 8 == 0
        and weight.out_features % 2 == 0
        and weight.scale.dtype.itemsize == 2
    )


def in_tiles(weight: QuantTensor, *, gated: bool = False) -> TiledTensor:
    """Reorder a stack, a layer at a time; the rows can be freed as soon as it is done.

    Args:
        weight: a stack that ``can_tile``.
        gated: its first half of outputs is a gate, the second what it gates; taken if both are whole strips.
    """
    outputs, inputs, group_size = weight.out_features, weight.in_features, weight.group_size
    gated = gated and outputs % 32 == 0

    @jax.jit
    def reorder(packed, scale, zero):
        words, meta = lax.map(lambda rows: to_tiles(*rows, group_size=group_size), (packed, scale, zero))
        if gated:
            words, meta = interleave_strips(words, _STRIP_AXIS), interleave_strips(meta, _STRIP_AXIS)
        return words, meta

    words, meta = reorder(weight.packed, weight.scale, weight.zero)
    return TiledTensor(words, meta, weight.perm, group_size, outputs, inputs, gated, str(weight.scale.dtype))


def tile_weights(params: dict) -> dict:
    """The parameter tree with every int4 stack in tiles, where the kernels take it.

    The rows of each leaf are let go before the next leaf is reordered if nothing else holds them, so call it with the only
    reference to the tree: at most one leaf is there twice.
    """
    return _tile_module("", params)


def _tile_module(module: str, node: dict) -> dict:
    tiled = {}
    for name in list(node):
        value = node.pop(name)
        if isinstance(value, dict):
            tiled[name] = _tile_module(name, value)
        elif isinstance(value, QuantTensor) and can_tile(value):
            # A bias would have to take turns like the outputs; models with gated int4 matrices have none.
            tiled[name] = in_tiles(value, gated=module == "gate_up" and "bias" not in node and "bias" not in tiled)
        else:
            tiled[name] = value
    return tiled
