"""Weights next to each other in a GPU's memory."""

import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

_log = logging.getLogger(__name__)


def packed_together(tree: Any) -> Any:
    """The same arrays on the same devices with no gaps between them; those handed in are gone.

    Loading and tiling leave holes where something was that is no more, and a pool that takes most of what is free may find no room
    in one piece. All arrays go to the host and come back: a second for every few gigabytes.
    """
    leaves, structure = jax.tree.flatten(tree)
    kept = []
    for leaf in leaves:
        kept.append((np.array(leaf), leaf.sharding))
        leaf.delete()
    return jax.block_until_ready(jax.tree.unflatten(structure, [jax.device_put(*each) for each in kept]))


def allocate_beside[Held](tree: Any, create: Callable[[], Held]) -> tuple[Any, Held]:
    """What ``create`` allocates, and the tree: packed together if there was no room in one piece otherwise.

    Raises:
        jax.errors.JaxRuntimeError: there is no room.
    """
    try:
        return tree, jax.block_until_ready(create())
    except jax.errors.JaxRuntimeError as error:
        if not out_of_memory(error):
            raise
    _log.info("the weights lie scattered over the memory; packing them together")
    tree = packed_together(tree)
    return tree, jax.block_until_ready(create())


def out_of_memory(error: Exception) -> bool:
    """Was there no room, or is it something else?"""
    return "RESOURCE_EXHAUSTED" in str(error)
