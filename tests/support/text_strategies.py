"""hypothesis strategies for text: every script, controls and emoji included, lone surrogates not."""

import itertools

from hypothesis import strategies as st

# U+2581 is how sentencepiece writes a space, so it can't come back as itself.
ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=60)
ASCII_TEXT = st.text(alphabet=st.characters(min_codepoint=9, max_codepoint=126), max_size=80)


def cut(text: str, points: list[int]) -> list[str]:
    """The text in pieces, cut at these positions."""
    at = [0, *sorted(point % (len(text) + 1) for point in points), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(at)]
