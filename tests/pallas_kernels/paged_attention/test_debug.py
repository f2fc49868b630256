"""Debug mode names the row of a block table that can't be right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from pallas_kernels.paged_attention.api import paged_decode
from pallas_kernels.paged_attention.debug import check_pages_now, check_queries_now
from pallas_kernels.paged_attention.reference import Pages

RIGHT = np.array([[2, 1, 0], [0, 99, -7]])
LENS = np.array([17, 8])


def test_entries_past_the_context_may_be_anything():
    check_pages_now(RIGHT, LENS, pages=3, page_size=8)


@pytest.mark.parametrize(("column", "page"), [(0, 3), (1, -1)])
def test_a_page_that_the_pool_lacks(column, page):
    table = RIGHT.copy()
    table[0, column] = page
    with pytest.raises(ValueError, match=rf"block_table\[0, {column}\] = {page} is not a page of a pool of 3"):
        check_pages_now(table, LENS, pages=3, page_size=8)


def test_a_table_too_narrow():
    with pytest.raises(ValueError, match="row 1 has 25 tokens, 4 pages, but the block table has width=3"):
        check_pages_now(RIGHT, np.array([17, 25]), pages=3, page_size=8)


@pytest.mark.parametrize(("starts", "count"), [([0, 3, 4], 3), ([0, 2, 1], -1)])
def test_more_queries_than_the_call_was_made_for(starts, count):
    check_queries_now(np.array([0, 2, 2, 4]), most=2)
    with pytest.raises(ValueError, match=f"has {count} queries, the call was made for up to 2"):
        check_queries_now(np.array(starts), most=2)


def test_a_program_stops_in_debug_mode_only():
    pages = Pages(jnp.zeros((1, 3, 1, 8, 16)), None, 16)

    def decode(table):
        one = jnp.ones(1, jnp.int32)
        run = jax.jit(lambda t: paged_decode(jnp.zeros((1, 1, 16)), pages, pages, 0, t, one, scale=1.0))
        out = jax.block_until_ready(run(table))
        jax.effects_barrier()
        return out

    wrong = jnp.array([[7]], jnp.int32)
    assert decode(wrong).shape == (1, 1, 16)
    with pl.enable_debug_checks(True), pytest.raises(jax.errors.JaxRuntimeError, match="is not a page of a pool of 3"):
        decode(wrong)
