"""Checks of what a call's arrays hold, in Pallas' debug mode (``pl.enable_debug_checks(True)``)."""

from functools import partial

import jax
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array, Int32


def check_pages(
    block_table: Int32[Array, "B W"], context_lens: Int32[Array, " B"], *, pages: int, page_size: int
) -> None:
    """Outside of debug mode nothing. In it the program stops with ``check_pages_now``'s message when it runs."""
    if pl.enable_debug_checks.value:
        check = partial(check_pages_now, pages=pages, page_size=page_size)
        jax.debug.callback(lambda *arrays: check(*map(np.asarray, arrays)), block_table, context_lens)


def check_queries(query_start: Int32[Array, " S"], *, most: int) -> None:
    """Outside of debug mode nothing. In it the program stops with ``check_queries_now``'s message when it runs."""
    if pl.enable_debug_checks.value:
        jax.debug.callback(lambda starts: check_queries_now(np.asarray(starts), most=most), query_start)


def check_queries_now(query_start: np.ndarray, *, most: int) -> None:
    """Count the queries of each row.

    Raises:
        ValueError: a row with more than ``most``, or fewer than none.
    """
    counts = np.diff(query_start)
    wrong = (counts < 0) | (counts > most)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"row {row} has {counts[row]} queries, the call was made for up to {most}")


def check_pages_now(block_table: np.ndarray, context_lens: np.ndarray, *, pages: int, page_size: int) -> None:
    """Compare a block table with the contexts that it describes.

    Raises:
        ValueError: a table too narrow for a context, or a page within a context that the pool doesn't have.
    """
    table, lens, width = block_table, context_lens, block_table.shape[1]
    needed = -(-lens // page_size)
    if (needed > width).any():
        row = int(needed.argmax())
        raise ValueError(f"row {row} has {lens[row]} tokens, {needed[row]} pages, but the block table has {width=}")
    used = np.arange(width) < needed[:, None]
    wrong = used & ((table < 0) | (table >= pages))
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"block_table[{row}, {column}] = {table[row, column]} is not a page of a pool of {pages}")
