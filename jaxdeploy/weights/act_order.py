"""Act-order: from a group index per input to a column order with whole groups, and back."""

import numpy as np
from jaxtyping import Int32

from jaxdeploy.errors import CheckpointError


def perm_from_g_idx(g_idx: Int32[np.ndarray, " K"], groups: int, name: str) -> Int32[np.ndarray, " K"] | None:
    """The stable order of the inputs by group, None if they are in that order already.

    Args:
        g_idx: ``[K]``, group of each input.
        groups: number of groups; each must have K / groups inputs.
        name: the tensor's name, for the message.

    Raises:
        CheckpointError: a group has more or fewer inputs, so that no column order makes the groups whole.
    """
    size = g_idx.shape[0] // groups
    ordered = np.repeat(np.arange(groups, dtype=np.int32), size)
    if np.array_equal(g_idx, ordered):
        return None
    outside = (g_idx < 0) | (g_idx >= groups)
    if outside.any():
        where = int(np.argmax(outside))
        raise CheckpointError(f"{name!r} puts input {where} in group {g_idx[where]}, expected 0..{groups - 1}")
    counts = np.bincount(g_idx, minlength=groups)
    if (counts != size).any():
        group = int(np.argmax(counts != size))
        raise CheckpointError(f"{name!r} puts {counts[group]} inputs in group {group}, expected {size} in each group")
    return np.argsort(g_idx, kind="stable").astype(np.int32)


def g_idx_from_perm(perm: Int32[np.ndarray, " K"] | None, in_features: int, groups: int) -> Int32[np.ndarray, " K"]:
    """Undo ``perm_from_g_idx``: the group of each input."""
    ordered = np.repeat(np.arange(groups, dtype=np.int32), in_features // groups)
    if perm is None:
        return ordered
    g_idx = np.empty_like(ordered)
    g_idx[perm] = ordered
    return g_idx
