from hypothesis import given
from hypothesis import strategies as st

from serve.special_tokens import SpecialTokenFilter

DROPPED = ["<|end|>", "<s>", "[X]"]
TEXT = st.lists(st.sampled_from([*DROPPED, "<", "|", "s", ">", "<|en", "hello", "é", "[", "X]"]), max_size=12).map(
    "".join
)


def through(pieces):
    stream = SpecialTokenFilter(DROPPED)
    return "".join(map(stream.feed, pieces)) + stream.flush()


def test_special_tokens_are_dropped():
    assert through(["a<s>b<|end|>c [X"]) == "abc [X"


def test_only_what_may_become_a_special_token_is_held_back():
    stream = SpecialTokenFilter(DROPPED)
    assert stream.feed("abc <|e") == "abc "
    assert stream.feed("x") == "<|ex"


def test_nothing_to_drop():
    stream = SpecialTokenFilter([])
    assert stream.feed("<s>") + stream.flush() == "<s>"


@given(TEXT, st.data())
def test_the_result_does_not_depend_on_the_cuts(text, data):
    cut = data.draw(st.integers(0, len(text)))
    assert through([text]) == through(text) == through([text[:cut], text[cut:]])
