"""The decode kernel on a GPU, against float64 with the same quantized cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.attention_cache import BAR, error
from support.attention_programs import Prepared, Setup, prepare

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU"),
]
RUNS = 20
WIDTHS = (16, 8, 4)
HEADS = (
    (32, 8, 128, 64),
    (16, 1, 128, 16),
    (9, 3, 64, 64),
    (4, 4, 96, 128),
    (28, 4, 128, 32),
    (4, 1, 256, 64),
)
MANY_HEADS = 34, 2, 64, 64  # 17 heads of a KV head: two units


def lens_of(page: int) -> tuple[int, ...]:
    return 0, 1, page - 1, page, page + 1, 511, 512, 513, 3000


RAGGED = [Setup(*heads, bits, lens_of(heads[3])) for heads in HEADS for bits in WIDTHS]
RAGGED.append(Setup(*MANY_HEADS, 16, lens_of(64)))
CAPPED = [Setup(8, 2, 128, 64, bits, (700, 99, 2000), soft_cap=5.0) for bits in WIDTHS]
LONG = [Setup(8, 2, 128, 64, bits, (131072, 5)) for bits in WIDTHS]
MANY = [
    Setup(8, 2, 128, 64, bits, tuple(map(int, np.random.default_rng(0).integers(0, 3000, 256))), batches=(256, 80, 1))
    for bits in WIDTHS
]


@pytest.fixture(scope="module")
def programs():
    return prepare([*RAGGED, *CAPPED, *LONG, *MANY])


def oracle(ready: Prepared, window: int = 0) -> np.ndarray:
    q = np.asarray(ready.q.astype(jnp.float32), np.float64)
    lens = ready.cache.lens
    rows = [
        ready.cache.attend(q[i], i, int(n), window, ready.setup.soft_cap) if n else 0 * q[i] for i, n in enumerate(lens)
    ]
    return np.stack(rows)


@pytest.mark.parametrize("setup", RAGGED, ids=str)
def test_ragged_lengths(programs, setup):
    ready = programs[setup].result()
    out = ready.decode()
    assert not out[0].any(), "an empty context comes out 0"
    assert error(out, oracle(ready)) < BAR


@pytest.mark.parametrize("window", [1, 100, 4096])
@pytest.mark.parametrize("setup", RAGGED[: len(WIDTHS)], ids=str)
def test_window(programs, setup, window):
    ready = programs[setup].result()
    assert error(ready.decode(window=window), oracle(ready, window)) < BAR


@pytest.mark.parametrize("setup", CAPPED, ids=str)
def test_soft_cap(programs, setup):
    ready = programs[setup].result()
    assert error(ready.decode(), oracle(ready)) < BAR


@pytest.mark.parametrize("setup", LONG, ids=str)
def test_a_long_context(programs, setup):
    ready = programs[setup].result()
    out = ready.decode()
    assert error(out, oracle(ready)) < BAR
    assert all(np.array_equal(ready.decode(), out) for _ in range(RUNS - 1))


@pytest.mark.parametrize("setup", [RAGGED[0], LONG[0], MANY[0]], ids=str)
def test_calls_of_one_program_share_their_counters(programs, setup):
    ready = programs[setup].result()
    out = ready.decode()
    assert all(np.array_equal(again, out) for again in ready.decode_again(RUNS))


@pytest.mark.parametrize("setup", MANY, ids=str)
def test_the_same_bits_every_time_and_in_any_company(programs, setup):
    ready = programs[setup].result()
    out = ready.decode()
    assert error(out, oracle(ready)) < BAR
    assert all(np.array_equal(ready.decode(), out) for _ in range(RUNS - 1))
    for rows in ([3], [200], np.arange(10, 90), np.arange(255, -1, -1)):
        assert np.array_equal(ready.decode(rows), out[rows])
