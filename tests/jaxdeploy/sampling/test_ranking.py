"""Cuts without a sort against cuts with one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdeploy.sampling.ranking import descending_keys, keep_until

cut = jax.jit(keep_until)
ROWS, PLACES = 4, 21


def sorted_cut(scores: np.ndarray, weights: np.ndarray, target: float) -> np.ndarray:
    """The fewest places, from the highest score down and equal scores in order, whose weights reach the target."""
    order = np.argsort(-scores, kind="stable")
    before = np.cumsum(weights[order]) - weights[order]
    kept = np.zeros(len(scores), bool)
    kept[order[before < target]] = True
    return kept


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(-6, 0), min_size=PLACES, max_size=PLACES), min_size=ROWS, max_size=ROWS), st.data()
)
def test_counts_with_many_ties(scores, data):
    x = np.array(scores, np.float32)
    k = np.array([data.draw(st.integers(1, PLACES + 3)) for _ in range(ROWS)], np.float32)
    ones = np.ones_like(x)
    found = np.asarray(cut(descending_keys(jnp.asarray(x)), ones, k))
    for row in range(ROWS):
        assert found[row].tolist() == sorted_cut(x[row], ones[row], k[row]).tolist()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 30.0])
def test_masses(scale):
    rng = np.random.default_rng(0)
    for _ in range(20):
        x = -np.abs(rng.normal(0, scale, (ROWS, PLACES))).astype(np.float32)
        weights = np.round(np.exp2(np.round(x)), 6).astype(np.float32) + np.float32(2**-20)  # sums without rounding
        x = np.log(weights)
        target = (rng.integers(1, 100, ROWS) / 128 * weights.sum(-1)).astype(np.float32)
        x = np.minimum(x - x.max(), 0)
        found = np.asarray(cut(descending_keys(jnp.asarray(x)), weights, target))
        for row in range(ROWS):
            kept = found[row]
            assert kept.tolist() == sorted_cut(x[row], weights[row], target[row]).tolist()
            assert kept.sum() >= 1


def test_more_than_there_is_keeps_everything():
    x = jnp.array([[0.0, -1.0, -jnp.inf, -2.0]])
    assert np.asarray(cut(descending_keys(x), jnp.exp(x), jnp.array([9.0]))).all()


def test_keys_fall_as_scores_rise():
    x = -np.abs(np.random.default_rng(1).normal(size=200).astype(np.float32)) * 10.0 ** np.arange(-38, 12).repeat(4)
    x = np.sort(np.append(x.astype(np.float32), [0.0, -np.inf]))
    keys = np.asarray(descending_keys(jnp.asarray(x[None])))[0]
    assert (np.diff(keys.astype(np.int64)) <= 0).all()
    assert keys[-1] == 0
