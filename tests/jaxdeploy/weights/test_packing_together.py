"""Weights that lie scattered are packed together when the cache finds no room, and are the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeploy.weights.packing_together import allocate_beside


def weights() -> dict:
    return {"a": jnp.arange(6.0).reshape(2, 3), "b": {"c": jnp.arange(4, dtype=jnp.bfloat16)}}


def full(times: int, message: str = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 6.74GiB"):
    """Something to allocate that finds no room so many times."""
    tries = iter(range(times))

    def create() -> jax.Array:
        if next(tries, None) is not None:
            raise jax.errors.JaxRuntimeError(message)
        return jnp.zeros(3)

    return create


def test_with_room_nothing_moves():
    tree = weights()
    same, made = allocate_beside(tree, full(0))
    assert same is tree
    assert made.shape == (3,)


def test_without_room_in_one_piece_the_weights_move_together():
    tree = weights()
    moved, made = allocate_beside(tree, full(1))
    assert made.shape == (3,)
    assert tree["a"].is_deleted()
    assert tree["b"]["c"].is_deleted()
    for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(weights()), strict=True):
        assert (a.dtype, a.sharding) == (b.dtype, b.sharding)
        np.testing.assert_array_equal(a, b)


def test_no_room_at_all_is_said():
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        allocate_beside(weights(), full(2))
    tree = weights()
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        allocate_beside(tree, full(1, "INTERNAL: broken"))
    assert not tree["a"].is_deleted()
