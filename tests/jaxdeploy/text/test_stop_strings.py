import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.text_strategies import cut

from jaxdeploy.errors import RequestError
from jaxdeploy.text.stop_strings import StopStrings


def run(stops: list[str], include: bool, pieces: list[str]) -> tuple[str, str | None]:
    matcher = StopStrings(stops, include)
    text = "".join(matcher.feed(piece)[0] for piece in pieces)
    return text + matcher.flush(), matcher.stopped


def test_match_over_a_border():
    matcher = StopStrings(["###"], include=False)
    assert matcher.feed("ab#") == ("ab", None)
    assert matcher.feed("#") == ("", None)
    assert matcher.feed("#cd") == ("", "###")
    assert matcher.feed("more") == ("", "###")
    assert matcher.flush() == ""


def test_held_text_that_is_no_stop_is_passed_on():
    matcher = StopStrings(["###"], include=False)
    assert matcher.feed("a##") == ("a", None)
    assert matcher.feed("b") == ("##b", None)
    assert matcher.feed("#") == ("", None)
    assert matcher.flush() == "#"
    assert matcher.stopped is None


def test_only_the_possible_start_is_held():
    matcher = StopStrings(["</tool>"], include=False)
    assert matcher.feed("x < y </to") == ("x < y ", None)
    # "</to" and then "</": only the new possible start stays.
    assert matcher.feed("</") == ("</to", None)


def test_include_returns_the_stop_string():
    assert run(["END"], True, ["a E", "ND b"]) == ("a END", "END")
    assert run(["END"], False, ["a E", "ND b"]) == ("a ", "END")


def test_the_stop_complete_first_wins():
    assert run(["d", "b"], False, ["abcd"]) == ("a", "b")
    assert run(["abcd", "bc"], False, ["abcd"]) == ("a", "bc")
    assert run(["bc", "abc"], False, ["xabc"]) == ("x", "abc")


def test_overlapping_starts_are_found():
    assert run(["aab"], False, list("aaab")) == ("a", "aab")
    assert run(["ababc"], False, list("abababc")) == ("ab", "ababc")


def test_no_stops_pass_everything():
    assert run([], False, ["a", "b"]) == ("ab", None)


def test_empty_stop_is_refused():
    with pytest.raises(RequestError, match=r"stop\[1\] is an empty string") as error:
        StopStrings(["a", ""], False)
    assert error.value.param == "stop"


def slow(stops: list[str], include: bool, text: str) -> tuple[str, str | None]:
    """Looks at every prefix of the text, as one that reads it character by character."""
    for end in range(len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            stop = max(ended, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@settings(max_examples=500, deadline=None)
@given(
    text=st.text(alphabet="ab#", max_size=30),
    stops=st.lists(st.text(alphabet="ab#", min_size=1, max_size=4), max_size=3),
    points=st.lists(st.integers(0, 30), max_size=8),
    include=st.booleans(),
)
def test_any_split_gives_what_reading_by_characters_gives(text, stops, points, include):
    expected = slow(stops, include, text)
    for pieces in (cut(text, points), [text], list(text)):
        assert run(stops, include, pieces) == expected


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet="ab#", max_size=20),
    stops=st.lists(st.text(alphabet="ab#", min_size=1, max_size=4), max_size=3),
)
def test_held_text_is_always_the_start_of_a_stop(text, stops):
    matcher = StopStrings(stops, include=False)
    passed = ""
    for i, char in enumerate(text):
        new, stopped = matcher.feed(char)
        passed += new
        if stopped:
            break
        held = text[len(passed) : i + 1]
        assert not held or any(stop.startswith(held) for stop in stops)
