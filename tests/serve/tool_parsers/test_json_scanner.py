"""The incremental scanner agrees with Python's json on what is a value and where it ends."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.tool_parsers.json_scanner import JsonScanner, clean_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(JSON, st.booleans(), st.sampled_from([None, 1]))
def test_every_value_is_scanned_to_its_end_and_no_further(value, ascii_only, indent):
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    scanner = JsonScanner()
    end, clean = scanner.scan(text + " ]x")
    assert scanner.done
    assert not scanner.failed
    assert end == len(text)
    assert clean == text


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='{}[]",:\\u0a1-+.eE truefalsn\n\t', max_size=14))
def test_agrees_with_python_on_what_is_json(text):
    try:
        expected = json.loads(text, strict=False, parse_constant=lambda _: 1 / 0)
    except (ValueError, ZeroDivisionError):
        assert clean_json(text) is None
    else:
        clean = clean_json(text)
        assert clean is not None
        assert json.loads(clean) == expected


@pytest.mark.parametrize(
    ("text", "taken"),
    [("{'a'", 1), ('{"a" 1', 5), ('{"a":1,}', 7), ("[1,]", 3), ("[}", 1), ("nul,", 3), ('"\\x"', 2), ('"\\u12g4"', 5),
     ("]", 0), ("01 ", 2), ('{"a":}', 5), ("{1:2}", 1), ("[1}", 2), ("- ", 1), ("<", 0)],
)  # fmt: skip
def test_fails_at_the_first_character_that_cannot_stand_there(text, taken):
    scanner = JsonScanner()
    end, clean = scanner.scan(text)
    assert scanner.failed
    assert (end, clean) == (taken, text[:taken])


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='{}[]",:\\u0a1-. tn\n', max_size=20))
def test_state_depends_on_the_characters_alone(text):
    whole, pieces = JsonScanner(), JsonScanner()
    end, clean = whole.scan(text)
    taken, out = 0, ""
    for char in text:
        count, piece = pieces.scan(char)
        taken, out = taken + count, out + piece
        if not count:
            break
    assert (taken, out, pieces.done, pieces.failed) == (end, clean, whole.done, whole.failed)


def test_depth_costs_no_recursion():
    assert clean_json("[" * 100_000 + "]" * 100_000) is not None


def test_starts_where_it_is_told():
    assert JsonScanner().scan("xx{} ", 2) == (4, "{}")


def test_a_bare_number_is_whole_only_when_the_text_ends():
    scanner = JsonScanner()
    scanner.scan("12")
    assert not scanner.done
    assert scanner.close()
    cut = JsonScanner()
    cut.scan("12.")
    assert not cut.close()
