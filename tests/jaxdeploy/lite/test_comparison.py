"""Two perplexities on the same windows."""

import math

import numpy as np
import pytest

from jaxdeploy.lite.comparison import compare_windows

RANDOM = np.random.default_rng(7)
WINDOWS = RANDOM.normal(2.7, 0.3, 24)
TOKENS = [511] * 23 + [100]


def test_a_small_steady_difference_is_found_below_the_noise_of_the_windows():
    found = compare_windows(WINDOWS, WINDOWS + RANDOM.normal(0.02, 0.01, 24), TOKENS)
    assert found.differs is True
    assert found.low < math.expm1(0.02) < found.high
    assert 0.001 < found.standard_error < 0.004
    assert found.sentence().startswith("differs beyond noise: perplexity")
    assert "higher" in found.sentence()


def test_noise_is_called_noise():
    wrong = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        wrong += bool(compare_windows(WINDOWS, WINDOWS + random.normal(0, 0.02, 24), TOKENS).differs)
    assert wrong <= 7, "of 40 models that don't differ, 2 or 3 should be taken for different"


def test_a_better_model_is_lower():
    found = compare_windows(WINDOWS, WINDOWS - 0.1, TOKENS)
    assert found.change == pytest.approx(math.expm1(-0.1))
    assert "lower" in found.sentence()


def test_the_mean_is_over_tokens():
    other = WINDOWS.copy()
    other[-1] += 1
    assert math.log1p(compare_windows(WINDOWS, other, TOKENS).change) == pytest.approx(100 / (23 * 511 + 100))


def test_few_windows_say_nothing():
    found = compare_windows(WINDOWS[:5], WINDOWS[:5] + 1, TOKENS[:5])
    assert found.differs is None
    assert "5 windows are too few" in found.sentence()


def test_equal_models_are_the_same():
    assert compare_windows(WINDOWS, WINDOWS, TOKENS).sentence() == "the same in every window"


def test_other_windows_are_refused():
    with pytest.raises(ValueError, match="24, 23 and 24 windows"):
        compare_windows(WINDOWS, WINDOWS[1:], TOKENS)
