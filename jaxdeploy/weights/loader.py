"""From a checkpoint on disk to the stacked parameter tree on the device, one tensor at a time."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdeploy.config.model import ModelConfig
from jaxdeploy.errors import CheckpointError
from jaxdeploy.model.rotation import plain_bases
from jaxdeploy.weights.checkpoint import Checkpoint
from jaxdeploy.weights.family_names import CheckpointModule
from jaxdeploy.weights.int4_layouts import Int4Layout
from jaxdeploy.weights.int4_matrix import Int4Matrix
from jaxdeploy.weights.inventory import check_tensors
from jaxdeploy.weights.leaf import LeafPlan, leaf_plans, nest
from jaxdeploy.weights.quant_tensor import QuantTensor
from jaxdeploy.weights.tensor_source import TensorSource
from jaxdeploy.weights.value_fold import folded

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in total)."""

ShardingRule = Callable[[tuple[str, ...]], jax.sharding.Sharding]
"""From the logical names of an array's axes to how it is spread over devices."""

_FLOATS = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64)


def load_parameters(
    checkpoint: Checkpoint, dtype: str | None, *, progress: Progress | None = None, sharding: ShardingRule | None = None
) -> dict[str, Any]:
    """The parameter tree of ``Decoder`` with the checkpoint's weights.

    Host memory stays close to one tensor: each is read, written into its stack on the device and let go. Int4 weights stay
    packed; their scales get the dtype of the other weights.

    Args:
        checkpoint: from ``open_checkpoint``.
        dtype: "float32", "bfloat16" or "float16" for every float array; None keeps the checkpoint's own, array by array.
        progress: told after every tensor.
        sharding: where arrays go; the default device if None.

    Raises:
        CheckpointError: a tensor is missing, has another shape or dtype than the configuration calls for, or has no place;
            names file, tensor, expected and found.
    """
    if checkpoint.kind == "orbax":
        from jaxdeploy.weights.orbax_store import restore_parameters  # its import takes a second

        params = restore_parameters(checkpoint, dtype, progress=progress, sharding=sharding)
        return _with_bases(params, checkpoint.config, dtype, sharding)
    assert checkpoint.source is not None
    source, layout = checkpoint.source, checkpoint.layout
    plans = list(leaf_plans(checkpoint.config, dtype or checkpoint.config.dtype))
    wanted, _ = check_tensors(checkpoint.config, source, plans, layout)
    counter = _Counter(source, wanted, progress)
    leaves = {}
    for plan in plans:
        if plan.is_int4:
            assert layout is not None
            leaves[plan.path] = _load_int4(plan, source, layout, dtype is None, sharding, counter)
        else:
            leaves[plan.path] = _load_dense(plan, source, dtype is None, sharding, counter)
    return _with_bases(nest(leaves), checkpoint.config, dtype, sharding)


def _with_bases(
    params: dict[str, Any], config: ModelConfig, dtype: str | None, sharding: ShardingRule | None
) -> dict[str, Any]:
    """What no checkpoint holds: the bases of keys and queries, before they are fitted to the model."""
    if not config.rotates_keys:
        return params
    place = jax.devices()[0] if sharding is None else sharding(("layer", "kv_heads", "head", "head"))
    bases = plain_bases(config.num_layers, config.num_kv_heads, config.head_dim, dtype or config.dtype)
    attention = params["layers"]["attention"]
    # Two arrays, not one twice: an engine may donate its parameters.
    attention |= {name: jax.device_put(jnp.copy(bases), place) for name in ("key_basis", "query_basis")}
    return params


class _Counter:
    """Counts the bytes that were loaded."""

    def __init__(self, source: TensorSource, names: list[str], progress: Progress | None):
        self._source, self._progress, self._done = source, progress, 0
        self._total = sum(source.info(name).nbytes for name in names)

    def add(self, names: list[str]) -> None:
        self._done += sum(self._source.info(name).nbytes for name in names)
        if self._progress is not None:
            self._progress(self._done, self._total)


def _load_dense(
    plan: LeafPlan, source: TensorSource, keep: bool, sharding: ShardingRule | None, counter: _Counter
) -> jax.Array:
    tensor = plan.source.tensor
    struct = plan.struct
    if keep:
        first = f"{plan.modules(0)[0].name}.{tensor}"
        struct = jax.ShapeDtypeStruct(struct.shape, source.info(first).dtype)
    stack = _Stack(plan, "", struct, sharding)
    for layer in range(plan.layers):
        row = 0
        for module in plan.modules(layer):
            name = f"{module.name}.{tensor}"
            info = source.info(name)
            shape = (module.outputs, *plan.layer_shape[1:])
            if info.shape != shape:
                raise CheckpointError(f"{info.file}: tensor {name!r} has shape {info.shape}, expected {shape}")
            if info.dtype not in _FLOATS:
                raise CheckpointError(f"{info.file}: tensor {name!r} has dtype {info.dtype}, expected a float")
            if keep:
                _check_kept(plan, name, info.dtype, struct.dtype)
            array = source.read(name)
            stack.write(folded(plan, row, array if module.order is None else array[module.order]), layer, row)
            row += module.outputs
            counter.add([name])
    return stack.array


def _load_int4(
    plan: LeafPlan,
    source: TensorSource,
    layout: Int4Layout,
    keep: bool,
    sharding: ShardingRule | None,
    counter: _Counter,
) -> QuantTensor:
    stacks: dict[str, _Stack] = {}
    for layer in range(plan.layers):
        modules = plan.modules(layer)
        matrices = [_read_int4(plan, source, layout, module) for module in modules]
        matrix = Int4Matrix.concat_outputs(matrices, [module.name for module in modules])
        if not stacks:
            scale_dtype = matrix.scale.dtype if keep else None
            stacks = {
                field: _Stack(plan, field, _with_dtype(struct, scale_dtype if field == "scale" else None), sharding)
                for field, (struct, _) in plan.fields().items()
            }
        if keep:
            _check_kept(plan, f"{modules[0].name} (scale)", matrix.scale.dtype, stacks["scale"].array.dtype)
        arrays = {"packed": matrix.packed, "scale": matrix.scale, "zero": matrix.zero}
        if "perm" in stacks:
            in_order = np.arange(matrix.in_features, dtype=np.int32)
            arrays["perm"] = in_order if matrix.perm is None else matrix.perm
        for field, array in arrays.items():
            stacks[field].write(array, layer, 0)
        counter.add([name for module in modules for name in plan.tensor_names(module, layout)])
    return plan.assemble({field: stack.array for field, stack in stacks.items()})


def _read_int4(plan: LeafPlan, source: TensorSource, layout: Int4Layout, module: CheckpointModule) -> Int4Matrix:
    matrix = layout.read(source, module.name)
    found = (matrix.out_features, matrix.in_features)
    expected = (module.outputs, plan.layer_shape[1])
    name = f"{module.name}.{layout.suffixes[0]}"
    file = source.info(name).file
    if found != expected:
        raise CheckpointError(f"{file}: tensor {name!r} packs {found} (outputs, inputs), expected {expected}")
    if matrix.perm is not None and plan.struct.perm is None:
        raise CheckpointError(
            f"{file}: {module.name!r} is in act-order (its g_idx is not ascending), but config.json says desc_act: false"
        )
    return matrix if module.order is None else matrix.take_outputs(module.order)


def _with_dtype(struct: jax.ShapeDtypeStruct, dtype: Any) -> jax.ShapeDtypeStruct:
    return struct if dtype is None else jax.ShapeDtypeStruct(struct.shape, dtype)


def _check_kept(plan: LeafPlan, name: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise CheckpointError(
            f"{name} has dtype {found}, but the other tensors of the stack {plan.name!r} have {expected}; a stack has one "
            "dtype, so these can't be kept bit for bit"
        )
    if found == jnp.float64:
        raise CheckpointError(f"{name} has dtype float64, which can't be kept; cast the checkpoint to float32 first")


class _Stack:
    """An array on the device that is filled piece by piece."""

    def __init__(self, plan: LeafPlan, field: str, struct: jax.ShapeDtypeStruct, sharding: ShardingRule | None):
        _, axes = plan.fields()[field]
        self._stacked = plan.source.stacked
        place = None if sharding is None else sharding(axes)
        dtype = jnp.float32 if struct.dtype == jnp.float64 else struct.dtype
        self.array = jnp.zeros(struct.shape, dtype, device=place)

    def write(self, piece: Any, layer: int, row: int) -> None:
        """Put ``piece`` at ``row`` of the layer's first axis."""
        starts = [row] + [0] * (piece.ndim - 1)
        if self._stacked:
            piece, starts = piece[None], [layer, *starts]
        write = _writer(self.array.sharding)
        # Waiting keeps one piece in flight: queued transfers would hold their host arrays.
        self.array = jax.block_until_ready(write(self.array, piece, np.array(starts, np.int32)))


@functools.cache
def _writer(sharding: jax.sharding.Sharding) -> Callable[[jax.Array, np.ndarray, np.ndarray], jax.Array]:
    def write(array, piece, starts):
        return lax.dynamic_update_slice(array, piece.astype(array.dtype), tuple(starts))

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)
