"""The packed int4 weight as the GPU's kernels read it: tiles instead of rows."""

from collections.abc import Callable

import flax.struct
import jax
from jax import Array, lax

from jaxdeploy.pytree import Leaf
from jaxdeploy.weights.quant_tensor import QuantTensor
from pallas_kernels.int4_matmul.tiles import TURN, from_tiles, interleave, separate, to_tiles


@flax.struct.dataclass
class TiledTensor:
    """A stack of int4 matrices in the layout of ``pallas_kernels.int4_matmul.tiles``; a QuantTensor says the same in rows.

    Attributes:
        words, meta: the tiles.
        perm: see QuantTensor.
        group_size: G, inputs that share a scale.
        outputs, inputs: N and K, before they were filled up to whole tiles.
        gated: outputs are those of a gate and of what it gates, in turns of 8; see ``int4_matmul_tiles``.
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

        def restore(tiles):
            sizes = {"outputs": self.outputs, "inputs": self.inputs, "group_size": self.group_size}
            rows = from_tiles(*tiles, **sizes, dtype=self.scale_dtype)
            return _turned(separate, rows) if self.gated else rows

        packed, scale, zero = lax.map(restore, (self.words, self.meta))
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
        gated: its first half of outputs is a gate, the second what it gates; taken if both are whole turns.
    """
    outputs, inputs, group_size = weight.out_features, weight.in_features, weight.group_size
    gated = gated and outputs % (2 * TURN) == 0

    @jax.jit
    def reorder(*stacks):
        def tiles_of(rows):
            return to_tiles(*(_turned(interleave, rows) if gated else rows), group_size=group_size)

        return lax.map(tiles_of, stacks)

    words, meta = reorder(weight.packed, weight.scale, weight.zero)
    return TiledTensor(words, meta, weight.perm, group_size, outputs, inputs, gated, str(weight.scale.dtype))


def _turned(turn: Callable[[Array, int], Array], rows: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """Packed weights [N, Kh], scales and zeros [Kg, N] with their outputs in another order."""
    packed, scale, zero = rows
    return turn(packed, 0), turn(scale, 1), turn(zero, 1)


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
