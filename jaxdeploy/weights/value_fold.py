"""Values' rotation, worked into the weights as they are loaded: values come out turned, the output projection turns them back."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeploy.config.model import ModelConfig
from jaxdeploy.model.rotation import rotation_matrix
from jaxdeploy.weights.leaf import LeafPlan


def folded(plan: LeafPlan, row: int, piece: np.ndarray) -> Any:
    """A piece of a parameter with the rotation of values in it.

    Args:
        plan: of the parameter; all but the attention's projections are left alone.
        row: of the parameter, where the piece begins.
        piece: one checkpoint tensor's part of one layer, rows in the parameter's order.
    """
    if plan.config.value_rotation != "fold":
        return piece
    return turned(plan.config, ".".join(plan.path[-3:]), piece, row)


def turned(config: ModelConfig, name: str, piece: Any, row: int = 0) -> Any:
    """A layer's parameter with the rotation in it, float32; others than "attention.qkv..." and "attention.out.weight" as they are.

    Args:
        row: of the parameter, where ``piece`` begins.
    """
    if name == "attention.out.weight":
        return _turn_columns(config, piece)
    first = (config.num_heads + config.num_kv_heads) * config.head_dim - row
    if not name.startswith("attention.qkv.") or first >= len(piece):
        return piece
    return _turn_rows(config, max(first, 0), piece)


@partial(jax.jit, static_argnums=0)
def _turn_columns(config: ModelConfig, weight: jax.Array) -> jax.Array:
    heads = weight.astype(jnp.float32).reshape(len(weight), -1, config.head_dim)
    return jnp.matmul(heads, _matrix(config), precision="highest").reshape(weight.shape)


@partial(jax.jit, static_argnums=(0, 1))
def _turn_rows(config: ModelConfig, first: int, piece: jax.Array) -> jax.Array:
    """Rows from ``first`` on are those of values; a weight [rows, D] or a bias [rows]."""
    wide = piece.astype(jnp.float32)
    heads = wide[first:].reshape(-1, config.head_dim, *piece.shape[1:])
    turned = jnp.einsum("kh...,hi->ki...", heads, _matrix(config), precision="highest")
    return jnp.concatenate([wide[:first], turned.reshape(-1, *piece.shape[1:])])


def _matrix(config: ModelConfig) -> jax.Array:
    return jnp.asarray(rotation_matrix(config.head_dim), jnp.float32)
