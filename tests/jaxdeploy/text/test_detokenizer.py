import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.internlm2_tokenizer import train_sentencepiece, write_internlm2_tokenizer
from support.text_strategies import ANY_TEXT

from jaxdeploy.text.detokenizer import IncrementalDetokenizer
from jaxdeploy.text.sentencepiece_tokenizer import SentencePieceTokenizer
from jaxdeploy.text.tokenizer import Tokenizer, load_tokenizer
from jaxdeploy.text.tokenizer_config import AddedToken, TokenizerConfig


@pytest.fixture(scope="module")
def internlm2(tmp_path_factory):
    directory = tmp_path_factory.mktemp("internlm2")
    write_internlm2_tokenizer(directory)
    return load_tokenizer(directory)


def spaced() -> SentencePieceTokenizer:
    config = TokenizerConfig(added_tokens=(AddedToken("<sep>"),))
    return SentencePieceTokenizer(train_sentencepiece(add_dummy_prefix=True), config, "m")


def stream(tokenizer: Tokenizer, prompt: list[int], ids: list[int], skip_special: bool = True) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, prompt, skip_special)
    return [*(detokenizer.add([token]) for token in ids), detokenizer.flush()]


def test_no_half_characters(internlm2):
    ids = internlm2.encode("a好🙂b", add_special=False)
    assert stream(internlm2, [], ids) == ["a", "", "", "好", "", "", "", "🙂", "b", ""]


def test_incomplete_character_comes_out_at_flush(internlm2):
    ids = internlm2.encode("好", add_special=False)
    assert stream(internlm2, [], ids[:2]) == ["", "", "�"]


def test_byte_that_can_not_become_a_character_is_not_held(internlm2):
    first, *_ = internlm2.encode("好", add_special=False)
    letter = internlm2.token_to_id("a")
    assert stream(internlm2, [], [first, letter]) == ["", "�a", ""]


def test_a_real_replacement_character_passes(internlm2):
    ids = internlm2.encode("a�b", add_special=False)
    assert "".join(stream(internlm2, [], ids)) == "a�b"


def test_leading_space_follows_the_prompt():
    tokenizer = spaced()
    the = tokenizer.token_to_id("▁the")
    assert the is not None
    assert stream(tokenizer, [], [the, the]) == ["the", " the", ""]
    assert stream(tokenizer, [the], [the]) == [" the", ""]
    # Nothing but special tokens in front, and they are left out: the text starts here.
    assert stream(tokenizer, [1], [the]) == ["the", ""]
    assert stream(tokenizer, [the, tokenizer.special_tokens["<sep>"]], [the]) == [" the", ""]
    assert stream(tokenizer, [the, tokenizer.special_tokens["<sep>"]], [the], skip_special=False) == ["the", ""]


def test_special_tokens_are_left_out_or_shown(internlm2):
    end = internlm2.special_tokens["<|im_end|>"]
    ids = [*internlm2.encode("fox", add_special=False), end]
    assert "".join(stream(internlm2, [], ids)) == "fox"
    assert "".join(stream(internlm2, [], ids, skip_special=False)) == "fox<|im_end|>"


def test_character_that_the_prompt_began_is_completed(internlm2):
    ids = internlm2.encode("a🙂b", add_special=False)
    for cut in range(len(ids)):
        whole = "".join(stream(internlm2, ids[:cut], ids[cut:]))
        assert whole == ("🙂b" if 1 <= cut < 5 else "a🙂b" if cut == 0 else "b")


@settings(max_examples=200, deadline=None)
@given(
    ids=st.lists(st.integers(0, 600), max_size=40), cuts=st.lists(st.integers(0, 40), max_size=6), skip=st.booleans()
)
def test_any_cut_of_any_tokens_gives_the_text_decoded_at_once(internlm2, ids, cuts, skip):
    """Random ids: broken bytes, special tokens and ids beyond the vocabulary included."""
    for tokenizer in (internlm2, spaced()):
        detokenizer = IncrementalDetokenizer(tokenizer, [], skip)
        at = [0, *sorted(cuts), len(ids)]
        parts = [detokenizer.add(ids[start:end]) for start, end in itertools.pairwise(at)]
        assert "".join(parts) + detokenizer.flush() == tokenizer.decode(ids, skip_special=skip)


@settings(max_examples=100, deadline=None)
@given(text=ANY_TEXT, prompt=ANY_TEXT)
def test_prompt_and_answer_make_the_whole(internlm2, text, prompt):
    for tokenizer in (internlm2, spaced()):
        before = tokenizer.encode(prompt, add_special=False)
        ids = tokenizer.encode(text, add_special=False)
        whole = tokenizer.decode(before + ids)
        assert tokenizer.decode(before) + "".join(stream(tokenizer, before, ids)) == whole


def test_work_per_token_does_not_grow(internlm2):
    """Counts how often a token's bytes are looked up: once per token, and a few of the prompt's."""
    calls = 0

    class Counting(type(internlm2)):
        def token_bytes(self, token: int) -> bytes:
            nonlocal calls
            calls += 1
            return super().token_bytes(token)

    counting = object.__new__(Counting)
    counting.__dict__.update(internlm2.__dict__)
    ids = [random.Random(0).randrange(400) for _ in range(2000)]
    stream(counting, ids, ids)
    assert calls <= len(ids) + 20
