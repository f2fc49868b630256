"""What a parameter is: its shape, the meaning of its axes and the checkpoint tensors it is made of, said once, where it is used."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.struct
from flax.core import meta

from jaxdeploy.pytree import Leaf


@dataclass(frozen=True, slots=True)
class Source:
    """Where a parameter comes from in a checkpoint.

    Attributes:
        modules: module names as Hugging Face's Llama spells them; their tensors are joined along the output axis.
            ``{layer}`` stands for the layer number of a stacked parameter. None: it is computed, and in no checkpoint.
        tensor: last part of the tensors' names, "weight" or "bias". A quantized weight has its format's own last parts.
        axes: logical name of each axis, for sharding.
        stacked: the first axis counts layers.
    """

    modules: tuple[str, ...]
    tensor: str
    axes: tuple[str, ...]
    stacked: bool

    def of_layer(self, layer: int) -> tuple[str, ...]:
        """The module names of one layer."""
        return tuple(module.format(layer=layer) for module in self.modules)


@flax.struct.dataclass
class Described(meta.AxisMetadata[Any]):
    """A parameter together with its Source: what ``Decoder.init`` returns. ``flax.core.meta.unbox`` leaves the arrays."""

    value: Leaf
    source: Source = flax.struct.field(pytree_node=False)

    def unbox(self) -> Any:
        """The array or QuantTensor."""
        return self.value

    def replace_boxed(self, val: Any) -> "Described":
        """The same description of another value."""
        return Described(val, self.source)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Described":
        """Unchanged: stacks are declared with their layer axis."""
        return self

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Described":
        """Unchanged: stacks are declared with their layer axis."""
        return self


def described(init: Callable[..., Any], source: Source) -> Callable[..., Described]:
    """A Linen initializer that also says where the parameter comes from."""
    return lambda *args: Described(init(*args), source)
