import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeploy.config.generation import MAX_LOGIT_BIAS, GenerationConfig
from jaxdeploy.sampling.slots import MAX_STOP_IDS, SlotOptions, SlotState

SLOTS, VOCAB = 4, 40
PADDING = SLOTS - 1

count = jax.jit(SlotState.count)
admit = jax.jit(SlotState.admit)
set_mask = jax.jit(SlotState.set_mask)


def feed(state: SlotState, *fed: tuple[int, int, bool], padding: int = 2) -> SlotState:
    """Count tokens given as (slot, token, in the prompt?), then ``padding`` rows, as a step does."""
    fed = (*fed, *[(0, 5, True)] * padding)  # padding's rows, hence slots, are those of row 0
    valid = np.arange(len(fed)) < len(fed) - padding
    slots, tokens, prompt = (np.array(part) for part in zip(*fed, strict=True))
    return count(state, slots.astype(np.int32), tokens.astype(np.int32), prompt.astype(bool), valid)


def options_of(**options) -> SlotOptions:
    return SlotOptions.of(GenerationConfig(**options), seed=7, stop_ids=(1, 2))


def test_options_are_the_config_as_arrays():
    options = SlotOptions.of(
        GenerationConfig(
            do_sample=True, temperature=0.5, top_k=4, top_p=0.9, min_p=0.1, repetition_penalty=1.5,
            presence_penalty=0.3, frequency_penalty=-0.3, min_new_tokens=6, logprobs=0,
            logit_bias={9: 1.5, 8: -2.0}, bad_token_ids=(7, 9),
        ),
        seed=-1,
        stop_ids=(3, 2),
    )  # fmt: skip
    floats = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    assert [float(getattr(options, name)) for name in floats] == pytest.approx([0.5, 0.9, 0.1, 1.5, 0.3, -0.3])
    assert (options.top_k, options.min_new_tokens, options.logprobs, options.seed) == (4, 6, True, 2**32 - 1)
    assert options.stop_ids.tolist() == [3, 2] + [-1] * (MAX_STOP_IDS - 2)
    bias = dict(zip(options.bias_ids.tolist(), options.bias_values.tolist(), strict=True))
    assert bias == {9: -np.inf, 8: -2.0, 7: -np.inf, -1: 0.0}


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 0.0}, {"temperature": 0.7}])
def test_greedy_is_temperature_0(options):
    assert options_of(**options).temperature == 0
    assert not options_of(**options).logprobs


def test_every_config_has_the_same_structure():
    def shapes(options):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), options)

    full = options_of(logit_bias=dict.fromkeys(range(MAX_LOGIT_BIAS), 1.0), logprobs=20, do_sample=True)
    assert shapes(full) == shapes(SlotOptions.of(GenerationConfig(), seed=2**40, stop_ids=tuple(range(MAX_STOP_IDS))))
    slots = SlotState.create(SLOTS, VOCAB)
    assert shapes(jax.tree.map(lambda leaf: leaf[0], slots.options)) == shapes(full)


def test_packed_options_are_what_they_were():
    options = SlotOptions.of(
        GenerationConfig(
            do_sample=True, temperature=0.5, top_k=4, top_p=0.9, min_p=0.1, repetition_penalty=1.5, presence_penalty=0.3,
            frequency_penalty=-0.3, min_new_tokens=6, logprobs=0, logit_bias={9: 1.5, 8: -2.0}, bad_token_ids=(7,),
        ),
        seed=-1,
        stop_ids=(3, 2),
    )  # fmt: skip
    slot, found = jax.jit(SlotOptions.unpack)(options.packed(3))
    assert slot == 3
    jax.tree.map(np.testing.assert_array_equal, found, options)
    assert [leaf.dtype for leaf in jax.tree.leaves(found)] == [leaf.dtype for leaf in jax.tree.leaves(options)]


def test_new_slots_are_neutral():
    state = SlotState.create(SLOTS, VOCAB)
    assert state.mask.shape == (SLOTS, 2), "40 tokens take two words"
    assert not any(part.any() for part in (state.in_prompt, state.in_answer, state.mask, state.has_mask))
    neutral = (("temperature", 0), ("repetition_penalty", 1), ("presence_penalty", 0), ("frequency_penalty", 0))
    for name, value in neutral:
        np.testing.assert_array_equal(getattr(state.options, name), np.full(SLOTS, value))
    np.testing.assert_array_equal(state.options.bias_ids, -1)
    np.testing.assert_array_equal(state.options.stop_ids, -1)


def test_counts_prompt_and_answer_apart():
    state = SlotState.create(SLOTS, VOCAB)
    state = feed(state, (1, 3, True), (1, 3, True), (1, 4, True), (0, 3, False), (0, 3, False), (0, 39, False))
    state = feed(state, (0, 3, False), (1, 8, False))
    prompt, answer = np.zeros((SLOTS, VOCAB), bool), np.zeros((SLOTS, VOCAB), np.int32)
    prompt[1, [3, 4]] = True
    answer[0, [3, 39]] = [3, 1]
    answer[1, 8] = 1
    np.testing.assert_array_equal(state.in_prompt, prompt)
    np.testing.assert_array_equal(state.in_answer, answer)


def test_padding_counts_nowhere():
    state = feed(SlotState.create(SLOTS, VOCAB), (2, 1, True), padding=6)
    assert np.asarray(state.in_prompt).sum() == 1
    assert not np.asarray(state.in_answer).any()
    assert not np.asarray(state.in_prompt)[PADDING].any()


def test_admit_forgets_the_slots_last_owner_and_no_other():
    state = feed(SlotState.create(SLOTS, VOCAB), (1, 3, True), (1, 4, False), (2, 3, True), (2, 4, False))
    words = jnp.array([5, 6], jnp.uint32)
    state = set_mask(set_mask(state, jnp.int32(1), words), jnp.int32(2), words)
    before = jax.device_get(state)
    new = options_of(do_sample=True, temperature=0.5, logit_bias={3: 2.0}, min_new_tokens=4, logprobs=1)
    state = jax.device_get(admit(state, new.packed(1)))
    assert not state.in_prompt[1].any()
    assert not state.in_answer[1].any()
    assert state.has_mask.tolist() == [False, False, True, False]
    admitted = jax.tree.map(lambda leaf: leaf[1], state.options)
    jax.tree.map(np.testing.assert_array_equal, admitted, new)
    others = np.array([0, 2, 3])
    jax.tree.map(lambda old, now: np.testing.assert_array_equal(old[others], now[others]), before, state)


def test_mask_is_set_for_one_slot_until_set_again():
    state = SlotState.create(SLOTS, VOCAB)
    state = set_mask(state, jnp.int32(2), jnp.array([1, 2], jnp.uint32))
    state = set_mask(state, jnp.int32(2), jnp.array([3, 0], jnp.uint32))
    assert state.has_mask.tolist() == [False, False, True, False]
    assert state.mask.tolist() == [[0, 0], [0, 0], [3, 0], [0, 0]]
