"""Ragged steps on a GPU, by the prefill kernel and, of few queries a row, by the decode kernel: against float64."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from support.attention_cache import BAR, error
from support.attention_programs import Setup, prepare

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU"),
]
RUNS = 20
WIDTHS = (16, 8, 4)
TOKENS = 640


def lens_of(page: int) -> tuple[int, ...]:
    return 1, 200, 700, page, page + 1, 64, 129


PREFILL = [
    Setup(*heads, bits, lens_of(heads[3]), tokens=TOKENS)
    for heads in ((8, 2, 128, 64), (16, 1, 64, 16), (4, 4, 96, 128), (4, 2, 256, 32))
    for bits in WIDTHS
]
MIXED = [replace(setup, mixed=True) for setup in PREFILL]
CAPPED = [Setup(8, 2, 128, 64, bits, lens_of(64), tokens=TOKENS, soft_cap=5.0) for bits in (16, 4)]
# Lengths that leave rows with fewer tokens than the most that a row may have.
FEW_LENS = (3000, 511, 513, 130, 64, 65, 1)
FEW = [
    Setup(*heads, bits, FEW_LENS, tokens=len(FEW_LENS) * most + 3, max_queries=most)
    for *heads, most, widths in (
        (32, 8, 128, 64, 4, WIDTHS),
        (9, 3, 64, 16, 8, WIDTHS),
        (4, 4, 96, 128, 2, WIDTHS),
        (4, 1, 256, 32, 5, WIDTHS),
        (28, 4, 128, 64, 16, (8,)),  # 112 columns: seven units
    )
    for bits in widths
]
LONG = [Setup(8, 2, 128, 64, bits, (131072, 9), tokens=8, max_queries=4) for bits in WIDTHS]


@pytest.fixture(scope="module")
def programs():
    return prepare([*PREFILL, *MIXED, *CAPPED, *FEW, *LONG])


def prompts(setup: Setup) -> list[int]:
    """New tokens of each row: whole prompts, chunks over a prefix, single tokens."""
    return [1, 200, 131, min(setup.page, 64), 1, 3, 128]


def filled(setup: Setup, total: int) -> list[int]:
    """As many new tokens as there are, up to ``total``, rows without any last."""
    news = []
    for length in setup.lens:
        news.append(min(length, total - sum(news)))
    return news


@pytest.mark.parametrize("setup", [*PREFILL, *MIXED, *CAPPED], ids=str)
def test_ragged_chunks_over_their_prefixes(programs, setup):
    ready, news = programs[setup].result(), prompts(setup)
    out = ready.ragged(news)
    assert not out[sum(news) :].any(), "padding comes out 0"
    assert error(out, ready.expected(news)) < BAR


@pytest.mark.parametrize("padding", [0, 1, 65, 495, TOKENS])
@pytest.mark.parametrize("setup", PREFILL[: len(WIDTHS)], ids=str)
def test_padding_of_any_length_comes_to_an_end(programs, setup, padding):
    ready, news = programs[setup].result(), filled(setup, TOKENS - padding)
    out = ready.ragged(news)
    assert not out[sum(news) :].any()
    assert padding == TOKENS or error(out, ready.expected(news)) < BAR


@pytest.mark.parametrize("window", [1, 90])
@pytest.mark.parametrize("setup", [*PREFILL[: len(WIDTHS)], *MIXED[: len(WIDTHS)]], ids=str)
def test_window(programs, setup, window):
    ready, news = programs[setup].result(), prompts(setup)
    assert error(ready.ragged(news, window), ready.expected(news, window)) < BAR


@pytest.mark.parametrize("setup", [*PREFILL, *MIXED], ids=str)
def test_prefill_has_the_same_bits_every_time_and_in_any_company(programs, setup):
    ready, news = programs[setup].result(), np.array(prompts(setup))
    out = ready.ragged(news)
    assert all(np.array_equal(ready.ragged(news), out) for _ in range(RUNS - 1))
    same_in_other_order(ready, news, out)


def same_in_other_order(ready, news: np.ndarray, out: np.ndarray) -> None:
    """Rows turned round, then half of them alone: each has the bits that it had among all."""
    starts = np.cumsum(news) - news
    order = np.arange(len(news))[::-1]
    for rows in (order, order[: len(order) // 2]):
        alone = np.zeros_like(news)
        alone[: len(rows)] = news[rows]
        others = [row for row in range(len(news)) if row not in rows]
        moved = np.concatenate([np.arange(starts[row], starts[row] + news[row]) for row in rows])
        q = ready.q[np.resize(moved, len(ready.q))]
        got, token = ready.ragged(alone, rows=[*rows, *others], q=q), 0
        for row in rows:
            assert np.array_equal(got[token : token + news[row]], out[starts[row] : starts[row] + news[row]]), row
            token += news[row]
        assert not got[token:].any()


@pytest.mark.parametrize("window", [0, 1, 100])
@pytest.mark.parametrize("setup", FEW, ids=str)
def test_few_queries_a_row(programs, setup, window):
    ready, most = programs[setup].result(), setup.max_queries
    for news in ([most] * 6 + [1], [1] * 7, [most, 1, 2, most - 1, 1, 0, 0], [0] * 7):
        out = ready.ragged(news, window)
        assert not out[sum(news) :].any(), "padding comes out 0"
        assert not sum(news) or error(out, ready.expected(news, window)) < BAR


@pytest.mark.parametrize("setup", FEW, ids=str)
def test_few_queries_have_the_same_bits_every_time_and_in_any_company(programs, setup):
    ready, news = programs[setup].result(), np.array([setup.max_queries] * 6 + [1])
    out = ready.ragged(news)
    assert all(np.array_equal(ready.ragged(news), out) for _ in range(RUNS - 1))
    same_in_other_order(ready, news, out)


@pytest.mark.parametrize("setup", LONG, ids=str)
def test_few_queries_of_a_long_context(programs, setup):
    ready, news = programs[setup].result(), [4, 4]
    assert error(ready.ragged(news), ready.expected(news)) < BAR
