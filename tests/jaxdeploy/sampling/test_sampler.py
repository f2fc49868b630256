"""The sampler against a plain implementation in float64 that is given the same noise."""

import functools
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeploy.config.generation import GenerationConfig
from jaxdeploy.sampling.extent import Extent
from jaxdeploy.sampling.sampler import Sampled, sample
from jaxdeploy.sampling.slots import SlotOptions, SlotState

VOCAB, ROWS = 50, 16  # no multiple of the 32 bits of a mask's word
SLOTS = ROWS + 1
WORDS = 2

jitted_sample = jax.jit(sample, static_argnames="extent")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a batch: its options and what its slot has seen."""

    config: GenerationConfig = field(default_factory=GenerationConfig)
    seed: int = 0
    made: int = 0
    prompt: tuple[int, ...] = ()
    answer: tuple[int, ...] = ()
    stop_ids: tuple[int, ...] = ()
    allowed: tuple[int, ...] | None = None


def sampling(**options) -> GenerationConfig:
    """Plain sampling (temperature 1, no filter) but for ``options``."""
    plain = {"do_sample": True, "temperature": 1.0, "top_k": 0}
    return GenerationConfig(**(plain | options))


def run(rows: list[Row], logits: np.ndarray, slots: list[int] | None = None, extent: Extent = Extent.ALL) -> Sampled:
    """Sample a batch of up to ROWS rows; the rest is padding. Slots may lie in any order."""
    slots = list(range(len(rows)))[::-1] if slots is None else slots
    neutral = SlotOptions.of(GenerationConfig(), seed=0, stop_ids=())
    options = [neutral] * SLOTS
    in_prompt, in_answer = np.zeros((SLOTS, VOCAB), bool), np.zeros((SLOTS, VOCAB), np.int32)
    mask, has_mask = np.zeros((SLOTS, WORDS), np.uint32), np.zeros(SLOTS, bool)
    made, row_slots = np.zeros(ROWS, np.int32), np.full(ROWS, ROWS, np.int32)
    padded = np.zeros((ROWS, VOCAB), np.float32)
    padded[: len(rows)] = logits
    for i, (row, slot) in enumerate(zip(rows, slots, strict=True)):
        options[slot] = SlotOptions.of(row.config, seed=row.seed, stop_ids=row.stop_ids)
        in_prompt[slot, list(row.prompt)] = True
        np.add.at(in_answer[slot], list(row.answer), 1)
        if row.allowed is not None:
            has_mask[slot] = True
            for token in row.allowed:
                mask[slot, token // 32] |= np.uint32(1 << token % 32)
        row_slots[i], made[i] = slot, row.made
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *options)
    state = SlotState(stacked, in_prompt, in_answer, mask, has_mask, np.zeros(SLOTS, np.int32))
    found = jax.device_get(jitted_sample(jnp.asarray(padded), jax.device_put(state), row_slots, made, extent=extent))
    return Sampled(*(part[: len(rows)] for part in found))


@functools.cache
def noise(seed: int, made: int) -> np.ndarray:
    key = jax.random.fold_in(jax.random.key(np.uint32(seed)), made)
    return np.asarray(jax.random.gumbel(key, (VOCAB,)), np.float64)


def edited(row: Row, logits: np.ndarray) -> np.ndarray:
    """Penalties, bias, bad tokens, held-back ends, grammar: in this order."""
    c, x = row.config, logits.astype(np.float64)
    for token in {*row.prompt, *row.answer}:
        x[token] = x[token] * c.repetition_penalty if x[token] < 0 else x[token] / c.repetition_penalty
    for token in set(row.answer):
        x[token] -= c.presence_penalty + c.frequency_penalty * row.answer.count(token)
    for token, bias in c.logit_bias.items():
        x[token] += bias
    x[list(c.bad_token_ids)] = -np.inf
    if row.made < c.min_new_tokens:
        x[list(row.stop_ids)] = -np.inf
    if row.allowed is not None:
        x[[token for token in range(VOCAB) if token not in row.allowed]] = -np.inf
    return x


def distribution(row: Row, logits: np.ndarray) -> np.ndarray:
    """Probabilities after temperature, top-k, top-p and min-p, in this order; equal scores rank by token id."""
    c, x = row.config, edited(row, logits)
    if c.greedy:
        return np.eye(VOCAB)[np.argmax(x)]
    x = x / c.temperature
    order = sorted(range(VOCAB), key=lambda token: (-x[token], token))
    if c.top_k:
        order = order[: c.top_k]
    p = np.zeros(VOCAB)
    p[order] = np.exp(x[order] - x[order[0]])
    p /= p.sum()
    if c.top_p < 1:
        total, kept = 0.0, []
        for token in order:
            if total >= c.top_p:
                break
            kept.append(token)
            total += p[token]
        order = kept
    order = [token for token in order if p[token] >= c.min_p * p[order[0]]]
    left = np.zeros(VOCAB)
    left[order] = p[order]
    return left / left.sum()


def expected_token(row: Row, logits: np.ndarray) -> int:
    """The Gumbel-max choice among what is left."""
    with np.errstate(divide="ignore"):
        scores = np.log(distribution(row, logits))
    return int(np.argmax(scores + noise(row.seed, row.made)))


def random_logits(rows: int, seed: int = 0) -> np.ndarray:
    return 3 * np.random.default_rng(seed).standard_normal((rows, VOCAB)).astype(np.float32)


def check(rows: list[Row], logits: np.ndarray) -> None:
    tokens = run(rows, logits).tokens
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [expected_token(row, x) for row, x in zip(rows, logits, strict=True)]


HISTORY = {"prompt": (1, 2, 3, 30), "answer": (3, 4, 4, 4, 9)}
STAGES = {
    "plain": Row(sampling()),
    "greedy": Row(GenerationConfig(temperature=1.5)),
    "temperature 0": Row(sampling(temperature=0.0)),
    "repetition": Row(sampling(repetition_penalty=1.7), **HISTORY),
    "repetition below 1": Row(sampling(repetition_penalty=0.5), **HISTORY),
    "presence": Row(sampling(presence_penalty=2.0), **HISTORY),
    "frequency": Row(sampling(frequency_penalty=-1.5), **HISTORY),
    "all penalties": Row(
        sampling(repetition_penalty=1.3, presence_penalty=0.7, frequency_penalty=1.1, temperature=0.7), **HISTORY
    ),
    "bias": Row(sampling(logit_bias={0: 4.0, 49: -100.0, 7: 2.5})),
    "bad tokens": Row(sampling(bad_token_ids=(0, 5, 49), logit_bias={5: 50.0})),
    "end held back": Row(sampling(min_new_tokens=3, logit_bias={7: 50.0}), made=2, stop_ids=(7, 0)),
    "end allowed": Row(sampling(min_new_tokens=3, logit_bias={7: 50.0}), made=3, stop_ids=(7, 0)),
    "grammar": Row(sampling(logit_bias={6: 50.0}), allowed=(0, 31, 32, 49)),
    "temperature": Row(sampling(temperature=3.0)),
    "top_k": Row(sampling(top_k=3, temperature=3.0)),
    "top_k 1": Row(sampling(top_k=1, temperature=9.0)),
    "top_k beyond the vocabulary": Row(sampling(top_k=1000)),
    "top_p": Row(sampling(top_p=0.6)),
    "top_p tiny": Row(sampling(top_p=1e-6, temperature=9.0)),
    "min_p": Row(sampling(min_p=0.2)),
    "min_p 1": Row(sampling(min_p=1.0, temperature=9.0)),
    "filters": Row(sampling(temperature=1.5, top_k=8, top_p=0.8, min_p=0.1)),
}


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_alone(name):
    row = STAGES[name]
    for seed in range(4):
        check([replace(row, seed=97 * seed + i) for i in range(ROWS)], random_logits(ROWS, seed))


def test_mixed_batches_of_random_options():
    rng = np.random.default_rng(5)

    def some(*values):
        return values[rng.integers(len(values))]

    def tokens(most: int) -> tuple[int, ...]:
        return tuple(int(token) for token in rng.integers(0, VOCAB, rng.integers(most + 1)))

    for batch in range(25):
        rows = [
            Row(
                GenerationConfig(
                    do_sample=some(True, True, True, False),
                    temperature=some(0.0, 0.3, 0.8, 1.0, 2.0),
                    top_k=some(0, 0, 1, 5, 50),
                    top_p=some(1.0, 1.0, 0.3, 0.95),
                    min_p=some(0.0, 0.0, 0.05, 0.5),
                    repetition_penalty=some(1.0, 1.2, 0.8),
                    presence_penalty=some(0.0, 0.9, -2.0),
                    frequency_penalty=some(0.0, 0.4, -0.3),
                    logit_bias={token: float(rng.normal(0, 5)) for token in tokens(4)},
                    bad_token_ids=tokens(3),
                    min_new_tokens=int(rng.integers(0, 4)),
                ),
                seed=int(rng.integers(2**32)),
                made=int(rng.integers(0, 6)),
                prompt=tokens(10),
                answer=tokens(10),
                stop_ids=tokens(2),
                allowed=some(None, None, tuple(range(10, 40))),
            )
            for _ in range(int(rng.integers(1, ROWS + 1)))
        ]
        check(rows, random_logits(len(rows), 100 + batch))


# Each pair of stages whose swap would change the only token that can come out.
@pytest.mark.parametrize(
    ("row", "logits", "token"),
    [
        # 2.0 / 2 - 0.5 = 0.5 loses to 0.6; (2.0 - 0.5) / 2 = 0.75 would win.
        (Row(GenerationConfig(repetition_penalty=2.0, presence_penalty=0.5), answer=(0,)), {0: 2.0, 1: 0.6}, 1),
        # 1 / 2 + 2 = 2.5 wins against 2; (1 + 2) / 2 = 1.5 would lose.
        (Row(GenerationConfig(repetition_penalty=2.0, logit_bias={0: 2.0}), prompt=(0,)), {0: 1.0, 1: 2.0}, 0),
        # The grammar comes before top-k: the best allowed token, though 40 others score higher.
        (Row(sampling(top_k=1), allowed=(45,)), dict.fromkeys(range(40), 9.0), 45),
        # Bad tokens come before top-p: what is left sums to 1 again.
        (Row(sampling(top_p=0.5, bad_token_ids=(0,))), {0: 30.0, 1: 20.0}, 1),
        # An end token that is held back loses to any other, whatever its bias.
        (Row(sampling(top_k=1, min_new_tokens=1, logit_bias={2: 100.0}), stop_ids=(2,)), {2: 50.0, 3: 5.0}, 3),
    ],
)
def test_order_of_the_stages(row, logits, token):
    x = np.full((1, VOCAB), -5, np.float32)
    x[0, list(logits)] = list(logits.values())
    assert distribution(row, x[0])[token] == pytest.approx(1), "the case is wrong"
    assert run([row], x).tokens.tolist() == [token]


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        # Among 0.4, 0.3, 0.2, 0.1: top-k 2 leaves 4/7 and 3/7, of which top-p 0.55 takes one; of all four it would take two.
        (sampling(top_k=2, top_p=0.55), {0}),
        # Temperature 2 flattens to 0.33, 0.28, 0.23, 0.16 before top-p 0.65 takes three; unflattened it would take two.
        (sampling(temperature=2.0, top_p=0.65), {0, 1, 2}),
        # Temperature 2 makes the last sqrt(1/4) of the first before min-p 0.4 asks; unflattened it would drop it.
        (sampling(temperature=2.0, min_p=0.4), {0, 1, 2, 3}),
        (sampling(min_p=0.4), {0, 1, 2}),
        # min-p compares with the likeliest: 0.3 is 0.75 of 0.4.
        (sampling(min_p=0.7), {0, 1}),
        # 0.4 + 0.3 reaches 0.7 less rounding; 0.69 surely.
        (sampling(top_p=0.69), {0, 1}),
    ],
)
def test_order_of_the_filters(config, kept):
    x = np.full((ROWS, VOCAB), -np.inf, np.float32)
    x[:, :4] = np.log([0.4, 0.3, 0.2, 0.1])
    seen = set()
    for step in range(20):
        seen |= set(run([Row(config, seed=i, made=step) for i in range(ROWS)], x).tokens.tolist())
    assert seen == kept


@pytest.mark.parametrize(
    "config",
    [sampling(), sampling(temperature=0.6, top_k=6), sampling(temperature=1.7, top_p=0.7, min_p=0.1)],
)
def test_frequencies_match_the_probabilities(config):
    logits = random_logits(1, 3)[0] / 3
    p, draws = distribution(Row(config), logits), 250
    counts = np.zeros(VOCAB)
    for step in range(draws):
        rows = [Row(config, seed, step) for seed in range(ROWS)]
        np.add.at(counts, run(rows, np.broadcast_to(logits, (ROWS, VOCAB))).tokens, 1)
    assert np.all(counts[p == 0] == 0)
    # Cells of fewer than 5 expected draws are taken together.
    expected = p * draws * ROWS
    large = expected >= 5
    observed = np.append(counts[large], counts[~large].sum())
    wanted = np.append(expected[large], expected[~large].sum())
    cells = wanted > 0
    statistic = ((observed[cells] - wanted[cells]) ** 2 / wanted[cells]).sum()
    freedom = cells.sum() - 1
    assert freedom >= 3
    # A chi-square has mean f and variance 2f. The draws are the same in every run.
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)


def test_tokens_depend_on_the_seed_and_step_alone():
    logits = random_logits(1, 9)[0]
    rng = np.random.default_rng(0)
    mine = Row(sampling(temperature=2.0), seed=123, made=5, **HISTORY)
    alone = run([mine], logits[None])
    for batch in range(8):
        place, count = int(rng.integers(ROWS)), ROWS
        # Neighbours that switch on every part that this row does not ask for.
        rows = [
            Row(STAGES[some].config, seed=123, made=5, allowed=(1,)) for some in rng.choice(list(STAGES), count - 1)
        ]
        x = random_logits(count, batch)
        rows.insert(place, mine)
        x[place] = logits
        together = run(rows, x, slots=rng.permutation(SLOTS - 1)[:count].tolist())
        assert together.tokens[place] == alone.tokens[0]
    for changes in ("made", "seed"):
        rows = [replace(mine, **{changes: value}) for value in range(ROWS)]
        tokens = run(rows, np.broadcast_to(logits, (ROWS, VOCAB))).tokens
        assert len(set(tokens.tolist())) > 3, f"the noise changes with {changes}"


def test_greedy_rows_of_a_mixed_batch():
    x = random_logits(ROWS)
    rows = [Row(sampling(temperature=5.0) if i % 2 else GenerationConfig(top_k=3, top_p=0.1)) for i in range(ROWS)]
    mixed, greedy = run(rows, x).tokens, run([Row()] * ROWS, x).tokens
    np.testing.assert_array_equal(greedy, x.argmax(axis=-1))
    np.testing.assert_array_equal(mixed[::2], greedy[::2])
    assert np.any(mixed[1::2] != greedy[1::2])


def test_ties():
    x = np.zeros((ROWS, VOCAB), np.float32)
    assert run([Row()] * ROWS, x).tokens.tolist() == [0] * ROWS, "greedy takes the first"
    seen = set()
    for step in range(20):
        rows = [Row(sampling(top_k=3), seed=i, made=step) for i in range(ROWS)]
        seen |= set(run(rows, x).tokens.tolist())
    assert seen == {0, 1, 2}, "top-k keeps exactly k"


def test_one_token_left_of_minus_infinity():
    x = np.full((ROWS, VOCAB), -np.inf, np.float32)
    x[:, 17] = -3
    rows = [Row(STAGES[name].config, seed=i) for i, name in enumerate(STAGES) if "end" not in name][:ROWS]
    assert run(rows, x).tokens.tolist() == [17] * ROWS


def test_nothing_left_still_gives_a_token():
    x = np.full((4, VOCAB), -np.inf, np.float32)
    rows = [Row(), Row(sampling()), Row(sampling(top_p=0.5, top_k=4, min_p=0.1)), Row(sampling(), allowed=())]
    tokens = run(rows, x).tokens
    assert np.all((tokens >= 0) & (tokens < VOCAB))


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 2e-38, 1e-44])
def test_low_temperatures_tend_to_greedy(temperature):
    # Some of these divide even differences of logits beyond float32's range; 1e-44 is subnormal.
    x = 20 * random_logits(ROWS)
    rows = [Row(sampling(temperature=temperature), seed=i) for i in range(ROWS - 1)]
    rows.append(Row(sampling(temperature=temperature, top_k=5, top_p=0.9, min_p=0.1)))
    np.testing.assert_array_equal(run(rows, x).tokens, x.argmax(axis=-1))


def test_logprobs_are_the_models_own_distribution():
    x = random_logits(ROWS)
    heavy = sampling(temperature=4.0, top_k=3, logit_bias={4: 30.0}, repetition_penalty=1.9, logprobs=2)
    rows = [Row(heavy, seed=i, **HISTORY) for i in range(ROWS - 1)] + [Row()]
    found = run(rows, x)
    raw = x - np.log(np.exp(x.astype(np.float64)).sum(-1, keepdims=True))
    assert found.tokens[:-1].tolist() == [4] * (ROWS - 1)
    np.testing.assert_allclose(found.logprobs, raw[range(ROWS), found.tokens], rtol=1e-5, atol=1e-5)
    best = np.argsort(-raw, axis=-1)[:, :20]
    np.testing.assert_array_equal(found.top_tokens, best)
    np.testing.assert_allclose(found.top_logprobs, np.take_along_axis(raw, best, -1), rtol=1e-5, atol=1e-5)


def test_logprobs_nobody_asked_for_are_zero():
    found = run([Row(), Row(sampling())], random_logits(2))
    for part in (found.logprobs, found.top_tokens, found.top_logprobs):
        assert not part.any()
    assert found.top_tokens.shape == (2, 20)


@pytest.mark.parametrize("name", STAGES)
def test_every_extent_that_suffices_gives_the_same_tokens(name):
    rows, x = [replace(STAGES[name], seed=i) for i in range(ROWS)], random_logits(ROWS)
    needed = Extent.of(STAGES[name].config, grammar=STAGES[name].allowed is not None)
    found = {extent: run(rows, x, extent=extent).tokens.tolist() for extent in Extent if extent >= needed}
    assert all(tokens == found[Extent.ALL] for tokens in found.values())
    assert set(found) == set(Extent) - set(range(needed))


def test_extent_of_a_batch_is_that_of_its_most_demanding_row():
    assert Extent.most([]) is Extent.GREEDY
    assert Extent.most([Extent.DRAW, Extent.ALL, Extent.GREEDY]) is Extent.ALL
    needs = {
        Extent.GREEDY: GenerationConfig(top_k=5, top_p=0.5),
        Extent.DRAW: sampling(),
        Extent.FILTER: sampling(min_p=0.1),
        Extent.ALL: GenerationConfig(min_new_tokens=1),
    }
    assert {extent: Extent.of(config, grammar=False) for extent, config in needs.items()} == {e: e for e in needs}
    assert Extent.of(GenerationConfig(), grammar=True) is Extent.ALL
    assert Extent.of(GenerationConfig(logprobs=0), grammar=False) is Extent.ALL
