"""One leaf of the parameter tree as the checkpoint sees it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax

from jaxdeploy.config.model import ModelConfig
from jaxdeploy.model.decoder import describe_parameters, is_described
from jaxdeploy.model.parameter import Source
from jaxdeploy.weights.family_names import CheckpointModule, checkpoint_modules
from jaxdeploy.weights.int4_layouts import Int4Layout
from jaxdeploy.weights.quant_tensor import QuantTensor


@dataclass(frozen=True, slots=True)
class LeafPlan:
    """A described parameter and the checkpoint modules it is made of.

    Attributes:
        path: its keys in the tree.
        struct: a ShapeDtypeStruct, or a QuantTensor of them.
        source: as the model describes it.
        config: of the model.
    """

    path: tuple[str, ...]
    struct: Any
    source: Source
    config: ModelConfig

    @property
    def name(self) -> str:
        """The keys joined by dots."""
        return ".".join(self.path)

    @property
    def is_int4(self) -> bool:
        """True for a QuantTensor."""
        return isinstance(self.struct, QuantTensor)

    @property
    def layers(self) -> int:
        """L of a stack, 1 for a parameter of its own."""
        return self.config.num_layers if self.source.stacked else 1

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """Shape of one layer's dense tensor: [N, K] of a matrix, [N] of a bias or norm."""
        if isinstance(self.struct, QuantTensor):
            return (self.struct.out_features, self.struct.in_features)
        return self.struct.shape[1:] if self.source.stacked else self.struct.shape

    def modules(self, layer: int) -> tuple[CheckpointModule, ...]:
        """The checkpoint modules of one layer, in the order of the parameter's outputs."""
        return checkpoint_modules(self.config, self.source.of_layer(layer), self.layer_shape[0])

    def tensor_names(self, module: CheckpointModule, layout: Int4Layout | None) -> list[str]:
        """The checkpoint's tensors that hold this parameter's part of ``module``."""
        if not self.is_int4:
            return [f"{module.name}.{self.source.tensor}"]
        assert layout is not None
        return [f"{module.name}.{suffix}" for suffix in layout.suffixes]

    def fields(self) -> dict[str, tuple[jax.ShapeDtypeStruct, tuple[str, ...]]]:
        """Every array of the leaf by field name ("" for a dense leaf): its struct and the logical name of each axis."""
        axes = self.source.axes
        if not isinstance(self.struct, QuantTensor):
            return {"": (self.struct, axes)}
        layer, outputs, inputs = axes
        fields = {
            "packed": (self.struct.packed, axes),
            "scale": (self.struct.scale, (layer, inputs, outputs)),
            "zero": (self.struct.zero, (layer, inputs, outputs)),
        }
        if self.struct.perm is not None:
            fields["perm"] = (self.struct.perm, (layer, inputs))
        return fields

    def assemble(self, arrays: dict[str, Any]) -> Any:
        """The leaf from its arrays by field name."""
        if not isinstance(self.struct, QuantTensor):
            return arrays[""]
        return QuantTensor(
            arrays["packed"], arrays["scale"], arrays["zero"], arrays.get("perm"), self.struct.group_size
        )


def leaf_plans(config: ModelConfig, dtype: str) -> Iterator[LeafPlan]:
    """The leaves of ``describe_parameters`` that a checkpoint holds, in the tree's order."""
    described, _ = jax.tree_util.tree_flatten_with_path(describe_parameters(config, dtype), is_leaf=is_described)
    for path, leaf in described:
        if leaf.source.modules:
            yield LeafPlan(tuple(str(key.key) for key in path), leaf.value, leaf.source, config)


def nest(leaves: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    """Nested dicts from leaves by path."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def pick(tree: dict[str, Any], path: tuple[str, ...]) -> Any:
    """The leaf at ``path``."""
    node: Any = tree
    for key in path:
        node = node[key]
    return node
