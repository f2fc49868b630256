"""One layer's weights: from the checkpoint to a flat dict, and back to the tensors of an int4 checkpoint."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxdeploy.config.model import ModelConfig
from jaxdeploy.errors import CheckpointError
from jaxdeploy.lite.block import LINEARS
from jaxdeploy.weights.int4_layouts import Int4Layout
from jaxdeploy.weights.int4_matrix import Int4Matrix
from jaxdeploy.weights.leaf import LeafPlan, leaf_plans
from jaxdeploy.weights.nibbles import pack_nibbles
from jaxdeploy.weights.tensor_source import TensorSource


@dataclass(frozen=True, slots=True)
class QuantizedLinear:
    """A rounded matrix on the host.

    Attributes:
        q: values 0..15 [N, K], uint8, columns in the order of ``perm``.
        scale: [N, K/G] float32, exact in the checkpoint's dtype.
        zero: [N, K/G] uint8.
        perm: stored column k is input ``perm[k]``; None if in order.
    """

    q: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    perm: np.ndarray | None = None

    def matrix(self, scale_dtype: Any) -> Int4Matrix:
        """As the checkpoint's layouts take it."""
        scale = np.ascontiguousarray(self.scale.T.astype(scale_dtype))
        return Int4Matrix(pack_nibbles(self.q), np.ascontiguousarray(self.zero.T), scale, self.perm)


class LayerFiles:
    """Reads and writes layers of one checkpoint, in its family's own names and row orders.

    Args:
        config: of the dense model (``quantization`` None), or of an int4 one together with its layout.
    """

    def __init__(self, config: ModelConfig, layout: Int4Layout | None = None):
        self._layout = layout
        plans = [plan for plan in leaf_plans(config, config.dtype) if plan.source.stacked]
        self.plans = {".".join(plan.path[1:]): plan for plan in plans}
        """By name in the layer's dict; a linear module's weight is ``<linear>.weight``."""

    def read(self, source: TensorSource, layer: int) -> dict[str, np.ndarray]:
        """The layer's arrays in float32, int4 matrices de-quantized.

        Raises:
            CheckpointError: a tensor is missing, has another shape, or holds a NaN or an infinity; names it.
        """
        return {name: self._read(plan, source, layer) for name, plan in self.plans.items()}

    def tensors(
        self, weights: dict[str, np.ndarray], matrices: dict[str, Int4Matrix], layer: int, dtype: Any
    ) -> Iterator[tuple[str, np.ndarray]]:
        """The layer as tensors of the checkpoint.

        Args:
            weights: arrays that stay float, cast to ``dtype`` (norms, biases).
            matrices: by linear module, written in the layout.
        """
        assert self._layout is not None
        for name, plan in self.plans.items():
            modules = plan.modules(layer)
            sizes = [module.outputs for module in modules]
            if plan.is_int4:
                for module, piece in zip(
                    modules, matrices[name.removesuffix(".weight")].split_outputs(sizes), strict=True
                ):
                    inverse = module.inverse
                    yield from self._layout.write(
                        piece if inverse is None else piece.take_outputs(inverse), module.name
                    )
                continue
            pieces = np.split(weights[name], np.cumsum(sizes)[:-1])
            for module, piece in zip(modules, pieces, strict=True):
                ordered = piece if module.inverse is None else piece[module.inverse]
                yield f"{module.name}.{plan.source.tensor}", np.ascontiguousarray(ordered.astype(dtype))

    def module_names(self, linear: str, layer: int) -> list[str]:
        """The checkpoint's modules that a linear module of the layer is made of."""
        return [module.name for module in self.plans[f"{linear}.weight"].modules(layer)]

    def in_features(self) -> dict[str, int]:
        """K of every linear module."""
        return {linear: self.plans[f"{linear}.weight"].layer_shape[1] for linear in LINEARS}

    def _read(self, plan: LeafPlan, source: TensorSource, layer: int) -> np.ndarray:
        modules = plan.modules(layer)
        if plan.is_int4:
            assert self._layout is not None
            pieces = [self._layout.read(source, module.name).dequantize() for module in modules]
        else:
            pieces = [read_finite(source, f"{module.name}.{plan.source.tensor}") for module in modules]
        for module, piece in zip(modules, pieces, strict=True):
            expected = (module.outputs, *plan.layer_shape[1:])
            if piece.shape != expected:
                raise CheckpointError(f"{module.name}: found shape {piece.shape}, expected {expected}")
        ordered = [piece if m.order is None else piece[m.order] for m, piece in zip(modules, pieces, strict=True)]
        return ordered[0] if len(ordered) == 1 else np.concatenate(ordered)


def read_finite(source: TensorSource, name: str) -> np.ndarray:
    """A float tensor as float32. Raises CheckpointError, naming it, if it holds a NaN or an infinity."""
    array = source.read(name).astype(np.float32)
    finite = np.isfinite(array)
    if not finite.all():
        info, bad = source.info(name), int(array.size - finite.sum())
        raise CheckpointError(
            f"{info.file}: tensor {name!r} holds {bad} values that are not numbers (NaN or infinite) of {array.size}; "
            "the checkpoint is damaged, fetch it again"
        )
    return array


def outer_names(config: ModelConfig) -> Sequence[tuple[str, LeafPlan]]:
    """Checkpoint names of the tensors outside of the layers: embedding, final norm, head."""
    return [
        (f"{plan.modules(0)[0].name}.{plan.source.tensor}", plan)
        for plan in leaf_plans(config, config.dtype)
        if not plan.source.stacked
    ]
