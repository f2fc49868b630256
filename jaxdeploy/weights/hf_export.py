"""From the stacked parameter tree back to Hugging Face tensors."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax import lax

from jaxdeploy.config.model import ModelConfig
from jaxdeploy.weights.checkpoint import Checkpoint, drop_model_prefix, read_json
from jaxdeploy.weights.int4_layouts import Int4Layout
from jaxdeploy.weights.int4_matrix import Int4Matrix
from jaxdeploy.weights.leaf import LeafPlan, leaf_plans, pick
from jaxdeploy.weights.orbax_store import EXTRA_FOLDER, ORBAX_FILE
from jaxdeploy.weights.safetensors_files import SafetensorsFiles


def hf_tensors(
    params: dict[str, Any], config: ModelConfig, layout: Int4Layout | None
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a checkpoint of ``config.family``, one at a time, layer by layer: the inverse of ``load_parameters``.

    Args:
        params: the tree; QuantTensors are written in ``layout``.
        config: of the model; its quantization says which leaves are QuantTensors.
        layout: how int4 modules are stored; None if there are none.
    """
    plans = list(leaf_plans(config, config.dtype))
    before = [plan for plan in plans if plan.path[0] == "embedding"]
    stacked = [plan for plan in plans if plan.source.stacked]
    after = [plan for plan in plans if plan not in before and plan not in stacked]
    for plan in before:
        yield from _layer_tensors(plan, pick(params, plan.path), 0, layout)
    for layer in range(config.num_layers):
        for plan in stacked:
            yield from _layer_tensors(plan, pick(params, plan.path), layer, layout)
    for plan in after:
        yield from _layer_tensors(plan, pick(params, plan.path), 0, layout)


def export_tensors(params: dict[str, Any], checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    """``hf_tensors`` of a restored Orbax checkpoint, named as in the checkpoint that it was made from, unused tensors included."""
    prefix = read_json(checkpoint.path / ORBAX_FILE).get("model_prefix", True)
    for name, array in hf_tensors(params, checkpoint.config, checkpoint.layout):
        yield (name if prefix else drop_model_prefix(name)), array
    extra = checkpoint.path / EXTRA_FOLDER
    if extra.is_dir():
        source = SafetensorsFiles(extra)
        for name in source.names():
            yield (name if prefix else drop_model_prefix(name)), source.read(name)
        source.close()


def _layer_tensors(
    plan: LeafPlan, leaf: Any, layer: int, layout: Int4Layout | None
) -> Iterator[tuple[str, np.ndarray]]:
    modules = plan.modules(layer)
    sizes = [module.outputs for module in modules]
    arrays = {
        field: _to_host(getattr(leaf, field) if field else leaf, layer if plan.source.stacked else None)
        for field in plan.fields()
    }
    if plan.is_int4:
        assert layout is not None
        matrix = Int4Matrix(arrays["packed"], arrays["zero"], arrays["scale"], arrays.get("perm"))
        for module, piece in zip(modules, matrix.split_outputs(sizes), strict=True):
            inverse = module.inverse
            yield from layout.write(piece if inverse is None else piece.take_outputs(inverse), module.name)
        return
    for module, piece in zip(modules, np.split(arrays[""], np.cumsum(sizes)[:-1]), strict=True):
        inverse = module.inverse
        yield f"{module.name}.{plan.source.tensor}", piece if inverse is None else piece[inverse]


def _to_host(array: jax.Array, layer: int | None) -> np.ndarray:
    return np.asarray(array if layer is None else _layer_of()(array, np.int32(layer)))


@functools.cache
def _layer_of() -> Any:
    return jax.jit(lambda stack, layer: lax.dynamic_index_in_dim(stack, layer, 0, keepdims=False))
