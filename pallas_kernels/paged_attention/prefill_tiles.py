"""The work list of prefill: which tile of queries belongs to which sequence."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

WARPGROUP_QUERIES = 64
QUERY_TILE = 2 * WARPGROUP_QUERIES


class Tiles(NamedTuple):
    """Tiles of queries; ``end`` is that of the row's queries, not of the tile.

    Row B stands for padding, begin == end for no tile.
    """

    row: Int32[Array, " G"]
    begin: Int32[Array, " G"]
    end: Int32[Array, " G"]

    @classmethod
    def of(cls, query_start: Int32[Array, " S"], tokens: int, left_out: Bool[Array, " B"] | None = None) -> "Tiles":
        """All tiles of ``tokens`` queries, S - 1 = B rows; those past the last row are tiles of row B. Rows left out have none."""
        rows = query_start.shape[0]  # B and the padding
        bounds = jnp.append(query_start, jnp.int32(tokens))
        counts = -(-jnp.diff(bounds) // QUERY_TILE)
        if left_out is not None:
            counts = jnp.where(jnp.append(left_out, False), 0, counts)
        # Sums over comparisons: one small fusion, where cumsum and searchsorted are scans.
        order = jnp.arange(rows, dtype=jnp.int32)
        ends = jnp.sum(jnp.where(order[:, None] >= order, counts, 0), axis=1, dtype=jnp.int32)
        number = jnp.arange(-(-tokens // QUERY_TILE) + rows, dtype=jnp.int32)
        row = jnp.sum(number[:, None] >= ends, axis=1, dtype=jnp.int32)
        place = jnp.minimum(row, rows - 1)
        begin = bounds[place] + (number - (ends - counts)[place]) * QUERY_TILE
        end = bounds[place + 1]
        return cls(row, jnp.where(row < rows, begin, end), end)
