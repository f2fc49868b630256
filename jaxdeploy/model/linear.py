"""Matrix products with one layer of a weight stack, dense or packed int4 alike."""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from jaxdeploy.config.model import ModelConfig
from jaxdeploy.errors import ConfigError
from jaxdeploy.model.norm import Unnormed
from jaxdeploy.model.parameter import Source, described
from jaxdeploy.weights.quant_tensor import QuantTensor
from jaxdeploy.weights.tiled_tensor import TiledTensor
from pallas_kernels.int4_matmul.after_norm import norm_int4_matmul_tiles
from pallas_kernels.int4_matmul.api import int4_matmul, int4_matmul_tiles
from pallas_kernels.rms_norm.api import add_rms_norm

Weight = Array | QuantTensor | TiledTensor


def linear(x: Float[Array, "*B D"], weight: Weight, layer: Int32[Array, ""]) -> Float[Array, "*B N"]:
    """``x @ weight[layer].T`` in the dtype of x; of a gated TiledTensor ``silu(gate) * up``, half as wide.

    Args:
        x: activations.
        weight: [L, N, D] dense, or an int4 stack in rows or tiles.
        layer: which layer; may be traced. A dense stack is sliced where XLA can fuse the slice, a packed one never.
    """
    if isinstance(weight, QuantTensor | TiledTensor) and weight.perm is not None:
        x = jnp.take(x, lax.dynamic_index_in_dim(weight.perm, layer, 0, keepdims=False), axis=-1)
    if isinstance(weight, TiledTensor):
        return int4_matmul_tiles(
            x, weight.words, weight.meta, layer,
            outputs=weight.outputs, group_size=weight.group_size, gated=weight.gated,
        )  # fmt: skip
    if isinstance(weight, QuantTensor):
        return int4_matmul(x, weight.packed, weight.scale, weight.zero, layer, group_size=weight.group_size)
    return lax.platform_dependent(x, weight, layer, cuda=_dense_on_gpu, default=_dense)


def linear_after_norm(
    unnormed: Unnormed, weight: Weight, layer: Int32[Array, ""]
) -> tuple[Float[Array, "T D"], Float[Array, "T N"]]:
    """The residual stream with what was to be added, and ``linear`` of its norm."""
    x, delta, gain, eps = unnormed
    if isinstance(weight, TiledTensor) and weight.perm is None:
        return norm_int4_matmul_tiles(
            x, delta, gain, weight.words, weight.meta, layer,
            eps=eps, outputs=weight.outputs, group_size=weight.group_size, gated=weight.gated,
        )  # fmt: skip
    total, normed = add_rms_norm(x, delta, gain, layer, eps=eps)
    return total, linear(normed, weight, layer)


def _dense(x: Float[Array, "*B D"], weight: Float[Array, "L N D"], layer: Int32[Array, ""]) -> Float[Array, "*B N"]:
    return _product(x, weight, layer, jnp.float32).astype(x.dtype)


def _dense_on_gpu(
    x: Float[Array, "*B D"], weight: Float[Array, "L N D"], layer: Int32[Array, ""]
) -> Float[Array, "*B N"]:
    """As ``_dense``, in the ways that XLA is good at (seen in the programs that jax 0.11.2 compiles for an H100).

    The sum is float32 inside of a matmul anyway; asked for as a float32 result, cuBLAS writes that, and a kernel more rounds it.

    One token is computed as if there were two: a product with a vector is no matmul, and its matrices, those of all layers, are
    sliced and widened to float32 in memory in every step. A matmul reads its slice in place.
    """
    if math.prod(x.shape[:-1]) > 1:
        return _product(x, weight, layer, x.dtype)
    rows = jnp.pad(x.reshape(1, -1), ((0, 1), (0, 0)))
    return _product(rows, weight, layer, x.dtype)[:1].reshape(*x.shape[:-1], -1)


def _product(x: jax.Array, weight: jax.Array, layer: jax.Array, dtype: Any) -> jax.Array:
    matrix = lax.dynamic_index_in_dim(weight, layer, 0, keepdims=False)
    return lax.dot_general(x, matrix, (((x.ndim - 1,), (1,)), ((), ())), preferred_element_type=dtype)


def _random_quant_tensor(key, layers: int, outputs: int, inputs: int, dtype, group_size: int, desc_act: bool):
    groups = inputs // group_size
    packed = jax.random.randint(key, (layers, outputs, inputs // 2), 0, 256, jnp.int32).astype(jnp.uint8)
    # q - zero is spread over [-8, 7], standard deviation 4.6: this scale makes the weights' deviation 0.02.
    scale = jnp.full((layers, groups, outputs), 0.02 / 4.6, dtype)
    zero = jnp.full((layers, groups, outputs), 8, jnp.uint8)
    perm = jnp.broadcast_to(jnp.arange(inputs, dtype=jnp.int32), (layers, inputs)) if desc_act else None
    return QuantTensor(packed, scale, zero, perm, group_size)


class StackedLinear(nn.Module):
    """The same projection of every layer: weights [L, N, D] (or packed int4) and maybe biases [L, N].

    Attributes:
        modules: checkpoint modules that are joined along the outputs, e.g. q_proj, k_proj and v_proj.
        axes: logical names of (outputs, inputs).
        gated: the first half of the outputs is a gate; the result is ``silu(gate) * up``.
    """

    config: ModelConfig
    modules: tuple[str, ...]
    inputs: int
    outputs: int
    axes: tuple[str, str]
    bias: bool
    dtype: str
    gated: bool = False

    def setup(self):
        """Declare the weight and the bias."""
        layers, dtype = self.config.num_layers, jnp.dtype(self.dtype)
        source = Source(self.modules, "weight", ("layer", *self.axes), stacked=True)
        quantization = self.config.quantization
        if quantization is not None and not any(quantization.stays_float(name) for name in self.modules):
            group_size = self.inputs if quantization.group_size == -1 else quantization.group_size
            if self.inputs % group_size:
                raise ConfigError(f"{self.inputs} inputs of {self.modules} must be divisible by {group_size=}")
            init = partial(
                _random_quant_tensor, layers=layers, outputs=self.outputs, inputs=self.inputs, dtype=dtype,
                group_size=group_size, desc_act=quantization.desc_act,
            )  # fmt: skip
            # The GPU's engine hands in tiles, which Flax would compare with the rows that init describes.
            if self.has_variable("params", "weight"):
                weight: Any = nn.meta.unbox(self.get_variable("params", "weight"))
            else:
                weight = self.param("weight", described(init, source))
        else:
            shape = (layers, self.outputs, self.inputs)
            weight = self.param("weight", described(nn.initializers.normal(0.02), source), shape, dtype)
        self.matrix: Any = weight
        self.biases: Any = None
        if self.bias:
            source = Source(self.modules, "bias", ("layer", self.axes[0]), stacked=True)
            self.biases = self.param("bias", described(nn.initializers.zeros, source), (layers, self.outputs), dtype)

    def __call__(self, x: Float[Array, "*B D"], layer: Int32[Array, ""]) -> Float[Array, "*B N"]:
        """Project with one layer's weights."""
        return self._finished(linear(x, self.matrix, layer), layer)

    def after_norm(
        self, unnormed: Unnormed, layer: Int32[Array, ""]
    ) -> tuple[Float[Array, "T D"], Float[Array, "T N"]]:
        """The residual stream with what was to be added, and the projection of its norm."""
        total, out = linear_after_norm(unnormed, self.matrix, layer)
        return total, self._finished(out, layer)

    def _finished(self, out: jax.Array, layer: jax.Array) -> jax.Array:
        if self.biases is not None:
            out = out + lax.dynamic_index_in_dim(self.biases, layer, 0, keepdims=False)
        if self.gated and not (isinstance(self.matrix, TiledTensor) and self.matrix.gated):
            gate, up = jnp.split(out, 2, axis=-1)
            out = jax.nn.silu(gate) * up
        return out
