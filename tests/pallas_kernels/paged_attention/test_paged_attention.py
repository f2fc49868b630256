"""Decode and prefill against attention written down in float64, over pools in which everything not in use is NaN."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.paged_attention.api import paged_decode, paged_prefill
from pallas_kernels.paged_attention.reference import CHUNK_TOKENS, QUERY_TILE, Pages

KV_HEADS, H, PAGE, LAYERS, LAYER = 2, 16, 8, 2, 1
SCALE = H**-0.5
# The longest takes three chunks, and its 88 pages are no multiple of a chunk's.
LENGTHS = (0, 1, PAGE - 1, PAGE, PAGE + 1, CHUNK_TOKENS - 1, CHUNK_TOKENS, CHUNK_TOKENS + 1, 700)
WINDOWS = (0, 1, 5, 300)


@dataclass(frozen=True, slots=True)
class Cache:
    """Sequences in shuffled pages, as the kernels take them and as plain float64 tokens ``[S, K, H]``."""

    k_pool: tuple
    v_pool: tuple
    bits: int
    table: np.ndarray
    k_tokens: list[np.ndarray]
    v_tokens: list[np.ndarray]


def make_cache(lengths: tuple[int, ...], bits: int, dtype: str = "float32", page: int = PAGE) -> Cache:
    """Random contents; unused layers, pages and places hold NaN, unused table entries no page at all."""
    rng = np.random.default_rng(sum(lengths) + bits)
    counts = [-(-length // page) for length in lengths]
    num_pages = sum(counts) + 3
    ids = iter(rng.permutation(num_pages))
    table = np.full((len(lengths), max(max(counts), 1)), 10**6, np.int32)
    for row, count in enumerate(counts):
        table[row, :count] = [next(ids) for _ in range(count)]
    k_pool, k_tokens = _fill(rng, lengths, table, num_pages, bits, dtype, page)
    v_pool, v_tokens = _fill(rng, lengths, table, num_pages, bits, dtype, page)
    return Cache(k_pool, v_pool, bits, table, k_tokens, v_tokens)


def _fill(rng, lengths, table, num_pages, bits, dtype, page):
    lead = (LAYERS, num_pages, KV_HEADS, page)
    if bits == 16:
        values, pairs = np.full((*lead, H), np.nan, jnp.dtype(dtype)), None
    else:
        values = rng.integers(0, 256, (*lead, H * bits // 8), np.uint8)
        pairs = np.full((*lead, 2), np.nan, np.float16)
    tokens = []
    for row, length in enumerate(lengths):
        sequence = np.zeros((length, KV_HEADS, H))
        for s in range(length):
            place = (LAYER, table[row, s // page], slice(None), s % page)
            if pairs is None:
                values[place] = rng.standard_normal((KV_HEADS, H))
                sequence[s] = values[place].astype(np.float64)
            else:
                scale = rng.uniform(0.5, 3, (KV_HEADS, 1)) / (2**bits - 1)
                pairs[place] = np.concatenate([scale, rng.uniform(-2, 0, (KV_HEADS, 1))], axis=1)
                stored, pair = values[place], pairs[place].astype(np.float64)
                q = np.stack([stored % 16, stored // 16], -1).reshape(KV_HEADS, H) if bits == 4 else stored
                sequence[s] = q * pair[:, :1] + pair[:, 1:]
        tokens.append(sequence)
    return (jnp.asarray(values), None if pairs is None else jnp.asarray(pairs)), tokens


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, position: int, window: int, soft_cap: float) -> np.ndarray:
    """One query [N, H] at ``position`` over tokens [S, K, H], in float64; 0 if it sees none."""
    out, group = np.zeros(q.shape), q.shape[0] // KV_HEADS
    seen = [s for s in range(len(k)) if s <= position and (window == 0 or position - s < window)]
    if not seen:
        return out
    for head in range(q.shape[0]):
        scores = SCALE * (k[seen, head // group] @ q[head].astype(np.float64))
        if soft_cap:
            scores = soft_cap * np.tanh(scores / soft_cap)
        weights = np.exp(scores - scores.max())
        out[head] = weights / weights.sum() @ v[seen, head // group]
    return out


@partial(jax.jit, static_argnames=("bits", "soft_cap"))
def decode(q, k_pool, v_pool, table, context_lens, window, *, bits, soft_cap):
    return paged_decode(
        q, Pages(*k_pool, bits), Pages(*v_pool, bits), jnp.int32(LAYER), table, context_lens, window,
        scale=SCALE, soft_cap=soft_cap,
    )  # fmt: skip


@partial(jax.jit, static_argnames=("bits", "soft_cap"))
def prefill(q, k_pool, v_pool, table, query_start, context_lens, window, *, bits, soft_cap):
    return paged_prefill(
        q, Pages(*k_pool, bits), Pages(*v_pool, bits), jnp.int32(LAYER), table, query_start, context_lens, window,
        scale=SCALE, soft_cap=soft_cap,
    )  # fmt: skip


def run_decode(cache: Cache, q, lengths, window=0, soft_cap=0.0) -> np.ndarray:
    lens = np.array(lengths, np.int32)
    out = decode(q, cache.k_pool, cache.v_pool, cache.table, lens, np.int32(window), bits=cache.bits, soft_cap=soft_cap)
    assert out.dtype == q.dtype
    return np.asarray(out, np.float64)


def run_prefill(cache: Cache, q, counts, lengths, window=0, soft_cap=0.0) -> np.ndarray:
    starts, lens = np.cumsum([0, *counts], dtype=np.int32), np.array(lengths, np.int32)
    out = prefill(
        q, cache.k_pool, cache.v_pool, cache.table, starts, lens, np.int32(window), bits=cache.bits, soft_cap=soft_cap
    )
    assert out.dtype == q.dtype
    return np.asarray(out, np.float64)


def queries(count: int, groups: int, dtype: str = "float32") -> jax.Array:
    q = np.random.default_rng(count).standard_normal((count, KV_HEADS * groups, H))
    return jnp.asarray(2 * q, dtype)


def expected_prefill(cache: Cache, q, counts, lengths, window=0, soft_cap=0.0) -> np.ndarray:
    q = np.asarray(q, np.float64)
    out, start = np.zeros(q.shape), 0
    for row, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        for i in range(count):
            position = length - count + i
            out[start + i] = attend(q[start + i], cache.k_tokens[row], cache.v_tokens[row], position, window, soft_cap)
        start += count
    return out


def expected_decode(cache: Cache, q, lengths, window=0, soft_cap=0.0) -> np.ndarray:
    rows = zip(np.asarray(q, np.float64), cache.k_tokens, cache.v_tokens, lengths, strict=True)
    return np.stack([attend(one, k, v, length - 1, window, soft_cap) for one, k, v, length in rows])


VARIANTS = [(16, 1, 0.0), (16, 4, 2.0), (8, 3, 0.0), (4, 2, 0.0)]  # bits, query heads per KV head, soft cap


@pytest.mark.parametrize(("bits", "groups", "soft_cap"), VARIANTS)
def test_decode_equals_float64(bits, groups, soft_cap):
    cache, q = make_cache(LENGTHS, bits), queries(len(LENGTHS), groups)
    for window in WINDOWS:
        out = run_decode(cache, q, LENGTHS, window, soft_cap)
        expected = expected_decode(cache, q, LENGTHS, window, soft_cap)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
        assert np.all(out[0] == 0), "an empty context"


# Rows (new tokens, context): without and with a prefix, one new token, more than a tile or a chunk; then rows without queries.
PREFILL_ROWS = ((9, 9), (1, 1), (5, 300), (1, 257), (QUERY_TILE + 1, QUERY_TILE + 1), (70, 340), (0, 0), (0, 0))
PREFILL_TOKENS = sum(count for count, _ in PREFILL_ROWS) + 13  # 13 of padding


@pytest.mark.parametrize(("bits", "groups", "soft_cap"), VARIANTS)
def test_prefill_equals_float64(bits, groups, soft_cap):
    counts, lengths = zip(*PREFILL_ROWS, strict=True)
    cache, q = make_cache(lengths, bits), queries(PREFILL_TOKENS, groups)
    for window in WINDOWS:
        out = run_prefill(cache, q, counts, lengths, window, soft_cap)
        expected = expected_prefill(cache, q, counts, lengths, window, soft_cap)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
        assert np.all(out[sum(counts) :] == 0), "padding"


@pytest.mark.parametrize(("dtype", "unit"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_half_precision_rounds_only_the_result(dtype, unit):
    lengths = (3, 40, 300)
    cache, q = make_cache(lengths, 16, dtype), queries(3, 2, dtype)
    out, expected = run_decode(cache, q, lengths), expected_decode(cache, q, lengths)
    np.testing.assert_allclose(out, expected, rtol=unit * 1.01, atol=1e-5)
    out = run_prefill(cache, q, (1, 1, 1), lengths)
    np.testing.assert_allclose(out, expected, rtol=unit * 1.01, atol=1e-5)


def test_page_larger_than_a_chunk():
    lengths, page = (1, 700), 512
    cache, q = make_cache(lengths, 16, page=page), queries(2, 1)
    np.testing.assert_allclose(run_decode(cache, q, lengths), expected_decode(cache, q, lengths), rtol=1e-5, atol=1e-5)


def test_large_scores_do_not_overflow():
    # Scores up to some 1000: exp of them is infinite, and in nearly every row one key takes all the weight.
    cache, q = make_cache(LENGTHS, 16), 100 * queries(len(LENGTHS), 1)
    expected = expected_decode(cache, q, LENGTHS)
    np.testing.assert_allclose(run_decode(cache, q, LENGTHS), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("window", [0, 40])
def test_chunks_equal_the_whole_and_decode_equals_its_last_row(window):
    length, tokens = 330, 340
    cache, q = make_cache((length,), 8), queries(tokens, 3)
    whole = run_prefill(cache, q, (length,), (length,), window)
    begin = 0
    for count in (1, 64, 200, 63, 2):
        # Later tokens are in the pages already: the causal mask must hide them.
        part = run_prefill(cache, jnp.asarray(np.roll(q, -begin, axis=0)), (count,), (begin + count,), window)
        np.testing.assert_allclose(part[:count], whole[begin : begin + count], rtol=1e-5, atol=1e-6)
        begin += count
    assert begin == length
    last = run_decode(cache, q[length - 1 : length], (length,), window)
    np.testing.assert_allclose(last[0], whole[length - 1], rtol=1e-5, atol=1e-6)


def test_a_row_does_not_depend_on_its_neighbours():
    q = queries(len(LENGTHS), 3)
    cache = make_cache(LENGTHS, 8)
    together = run_decode(cache, q, LENGTHS)
    # The others' contexts end: fewer chunks are walked and their pages are not looked at.
    for row in (1, 4, 5):
        alone = [length if i == row else 0 for i, length in enumerate(LENGTHS)]
        np.testing.assert_array_equal(run_decode(cache, q, alone)[row], together[row])


def pool(bits: int = 16, width: int = H, kv_heads: int = KV_HEADS, pairs: bool = False) -> Pages:
    lead = (1, 2, kv_heads, PAGE)
    values = jnp.zeros((*lead, width), jnp.float32 if bits == 16 else jnp.uint8)
    return Pages(values, jnp.zeros((*lead, 2), jnp.float16) if pairs else None, bits)


@pytest.mark.parametrize(
    ("heads", "k", "v", "implementation", "message"),
    [
        (4, pool(), pool(), "triton", r"implementation='triton' is unknown; there are \('mosaic', 'reference'\)"),
        (4, pool(), pool(kv_heads=1), None, r"K and V pools differ: \(1, 2, 2, 8, 16\) and \(1, 2, 1, 8, 16\)"),
        (5, pool(), pool(), None, r"heads=5 must be divisible by kv_heads=2"),
        (4, pool(width=8), pool(width=8), None, r"head_dim 16 at 16 bits takes 16 values, the pool has 8"),
        (4, pool(4, 16, pairs=True), pool(4, 16, pairs=True), None, r"head_dim 16 at 4 bits takes 8 .*has 16"),
        (4, pool(2), pool(2), None, r"bits=2 must be one of \(16, 8, 4\)"),
        (4, pool(8), pool(8), None, r"bits=8: pools of 8 and 4 bits need"),
        (4, pool(16, pairs=True), pool(16, pairs=True), None, r"bits=16: .* those of 16 have none"),
    ],
)
def test_errors_name_the_values(heads, k, v, implementation, message):
    q, one, table = jnp.zeros((1, heads, H)), jnp.ones(1, jnp.int32), jnp.zeros((1, 1), jnp.int32)
    with pytest.raises(ValueError, match=message):
        paged_decode(q, k, v, 0, table, one, scale=1.0, implementation=implementation)
    with pytest.raises(ValueError, match=message):
        paged_prefill(q, k, v, 0, table, jnp.arange(2, dtype=jnp.int32), one, scale=1.0, implementation=implementation)
