import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.rope_configs import ROPE_CASES

from jaxdeploy.config.rope import RopeConfig
from jaxdeploy.model.rope import inverse_frequencies, rotate

GOLDENS = Path(__file__).parents[2] / "goldens"


def frequencies(rope: RopeConfig, head_dim: int, *lengths: int) -> np.ndarray:
    return np.asarray(inverse_frequencies(rope, head_dim, jnp.array(lengths, jnp.int32)))


def plain(theta: float, head_dim: int) -> np.ndarray:
    return np.array([1 / theta ** (2 * i / head_dim) for i in range(head_dim // 2)])


@pytest.mark.parametrize("name", ROPE_CASES)
def test_published_settings_match_transformers(name):
    keys, head_dim, length = ROPE_CASES[name]
    rope = RopeConfig.from_hf(keys, head_dim)
    golden = np.load(GOLDENS / "rope.npz")
    # transformers itself computes powers in float32.
    np.testing.assert_allclose(frequencies(rope, head_dim, length)[0], golden[name], rtol=3e-6)
    assert rope.attention_factor == pytest.approx(float(golden[f"{name}.attention_factor"]), rel=1e-12)


@pytest.mark.parametrize(("factor", "theta", "limit"), [(2.0, 1e6, 32768), (6.0, 5e7, 32768), (2.5, 1e4, 24)])
@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_dynamic_is_float64_exact_to_1e_6_at_every_length(factor, theta, limit, head_dim):
    rope = RopeConfig("dynamic", theta, factor, limit)
    lengths = [1, limit - 1, limit, limit + 1, limit * 2 - 3, limit * 7 + 5, limit * 64]
    for length, actual in zip(lengths, frequencies(rope, head_dim, *lengths), strict=True):
        growth = factor * length / limit - (factor - 1) if length > limit else 1.0
        base = theta * growth ** (head_dim / (head_dim - 2))
        np.testing.assert_allclose(actual, plain(base, head_dim), rtol=1e-6)


def test_dynamic_requests_do_not_affect_each_other():
    rope = RopeConfig("dynamic", 1e4, 2.0, 24)
    together = frequencies(rope, 16, 10, 45, 24, 99)
    for row, length in enumerate((10, 45, 24, 99)):
        np.testing.assert_array_equal(together[row], frequencies(rope, 16, length)[0])
    np.testing.assert_array_equal(together[0], together[2])
    assert together[1][-1] < together[0][-1] * 0.9


def test_longrope_switches_above_the_original_length():
    short, long = (1.0, 1.5, 2.0, 2.5), (1.0, 4.0, 9.0, 16.0)
    rope = RopeConfig("longrope", 1e4, 4.0, 32, short_factor=short, long_factor=long)
    rows = frequencies(rope, 8, 32, 33)
    np.testing.assert_allclose(rows[0], plain(1e4, 8) / short, rtol=1e-7)
    np.testing.assert_allclose(rows[1], plain(1e4, 8) / long, rtol=1e-7)


def test_linear_and_factors_divide():
    np.testing.assert_allclose(frequencies(RopeConfig("linear", 1e4, 4.0), 8, 9)[0], plain(1e4, 8) / 4, rtol=1e-7)
    factors = (1.0, 2.0, 5.0, 8.0)
    rope = RopeConfig("factors", 1e4, factors=factors)
    np.testing.assert_allclose(frequencies(rope, 8, 9)[0], plain(1e4, 8) / factors, rtol=1e-7)


def test_llama3_bands():
    rope = RopeConfig("llama3", 1e4, 8.0, 128, low_freq_factor=1.0, high_freq_factor=4.0)
    expected = []
    for freq in plain(1e4, 16):
        wavelength = 2 * math.pi / freq
        if wavelength < 128 / 4:
            expected.append(freq)
        elif wavelength > 128 / 1:
            expected.append(freq / 8)
        else:
            smooth = (128 / wavelength - 1) / (4 - 1)
            expected.append((1 - smooth) * freq / 8 + smooth * freq)
    np.testing.assert_allclose(frequencies(rope, 16, 5)[0], expected, rtol=1e-7)


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_ramp(truncate):
    rope = RopeConfig("yarn", 1e3, 8.0, 128, beta_fast=16.0, beta_slow=2.0, truncate=truncate)
    ends = [32 * math.log(128 / (beta * 2 * math.pi)) / (2 * math.log(1e3)) for beta in (16.0, 2.0)]
    low, high = (math.floor(ends[0]), math.ceil(ends[1])) if truncate else ends
    keep = 1 - np.clip((np.arange(16) - low) / (high - low), 0, 1)
    assert 0 < keep[3] < 1  # the ramp is inside
    expected = plain(1e3, 32) * keep + plain(1e3, 32) / 8 * (1 - keep)
    np.testing.assert_allclose(frequencies(rope, 32, 5)[0], expected, rtol=1e-7)


def test_yarn_ramp_of_no_width_is_finite():
    rope = RopeConfig("yarn", 1e4, 4.0, 4)  # every dimension turns less than once over 4 tokens
    np.testing.assert_allclose(frequencies(rope, 16, 5)[0][1:], plain(1e4, 16)[1:] / 4, rtol=1e-6)


def test_frequencies_need_no_recompile_for_other_lengths():
    rope = RopeConfig("dynamic", 1e4, 2.0, 24)
    compiled = jax.jit(functools.partial(inverse_frequencies, rope, 16))
    for length in (8, 40):
        np.testing.assert_allclose(compiled(jnp.array([length]))[0], frequencies(rope, 16, length)[0], rtol=1e-6)
    assert compiled._cache_size() == 1


def _rotated(x: np.ndarray, positions: np.ndarray, inv_freq: np.ndarray, attention_factor: float) -> np.ndarray:
    """Complex numbers: (x[i] + j x[i + H/2]) * exp(j * angle), float64."""
    half = x.shape[-1] // 2
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * positions[:, None] * inv_freq)[:, None, :]
    return np.concatenate([turned.real, turned.imag], axis=-1) * attention_factor


@pytest.mark.parametrize("attention_factor", [1.0, 1.25])
def test_rotate_is_a_complex_product(attention_factor):
    random = np.random.RandomState(0)
    x, positions = random.standard_normal((5, 3, 8)).astype(np.float32), np.array([0, 1, 7, 40, 300], np.int32)
    inv_freq = np.stack([plain(theta, 8) for theta in (10.0, 1e2, 1e3, 1e4, 1e5)]).astype(np.float32)
    actual = rotate(jnp.array(x), jnp.array(positions), jnp.array(inv_freq), attention_factor)
    np.testing.assert_allclose(actual, _rotated(x, positions, inv_freq, attention_factor), atol=5e-5)


def test_rotate_depends_on_the_distance_only():
    random = np.random.RandomState(1)
    q, k = (jnp.array(random.standard_normal((1, 1, 16)), jnp.float32) for _ in range(2))
    inv_freq = jnp.array(plain(1e4, 16)[None], jnp.float32)

    def score(q_position: int, k_position: int) -> float:
        turned = (rotate(x, jnp.array([p]), inv_freq, 1.0) for x, p in ((q, q_position), (k, k_position)))
        return float(jnp.vdot(*turned))

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert abs(score(9, 4) - score(9, 5)) > 1e-2


def test_rotate_keeps_the_dtype_and_rounds_once():
    x = jnp.array(np.random.RandomState(2).standard_normal((3, 2, 8)), jnp.bfloat16)
    positions, inv_freq = jnp.array([3, 50, 1000]), jnp.broadcast_to(jnp.array(plain(1e4, 8), jnp.float32), (3, 4))
    actual = rotate(x, positions, inv_freq, 1.0)
    assert actual.dtype == jnp.bfloat16
    exact = rotate(x.astype(jnp.float32), positions, inv_freq, 1.0)
    np.testing.assert_array_equal(np.asarray(actual, np.float32), np.asarray(exact.astype(jnp.bfloat16), np.float32))
