"""Answers made by choosing among the tokens that a constraint allows."""

import random
from collections.abc import Callable

import numpy as np

from jaxdeploy.engine.request import Constraint
from jaxdeploy.text.tokenizer import Tokenizer


def allowed(constraint: Constraint) -> list[int]:
    """Ids whose bit is set in the constraint's mask, which there must be."""
    mask = constraint.mask()
    assert mask is not None
    assert mask.dtype == np.uint32
    return np.flatnonzero(np.unpackbits(mask.astype("<u4").view(np.uint8), bitorder="little")).tolist()


def random_answer(
    make: Callable[[], Constraint],
    tokenizer: Tokenizer,
    rng: random.Random,
    most: int = 4000,
    tags: tuple[str, ...] = (),
    ends: frozenset[int] = frozenset(),
) -> str:
    """Text of a random walk from the start to an end token (of ``ends`` or the tokenizer's), which it leaves out.

    Where a string or a list could go on for ever, the walk tends to end it: by a bracket or a quote, or by one of ``tags``.
    """
    constraint, ids, spelling = make(), [], []
    ends = ends or frozenset(tokenizer.eos_ids)
    closing = {tokenizer.encode(char, add_special=False)[0] for char in '"}]<\n'}
    spelled = [tokenizer.encode(tag, add_special=False) for tag in tags]
    while True:
        choices = allowed(constraint)
        assert choices, f"nothing may follow {tokenizer.decode(ids, skip_special=False)!r}"
        if ends.intersection(choices) and (len(choices) <= len(ends) or rng.random() < 0.5):
            return tokenizer.decode(ids, skip_special=False)
        if spelled and not spelling and rng.random() < 0.1:
            spelling = list(rng.choice(spelled))
        closers = closing.intersection(choices)
        if spelling and spelling[0] in choices:
            token = spelling.pop(0)
        elif closers and rng.random() < 0.25:
            token = rng.choice(sorted(closers))
        else:
            token, spelling = rng.choice([token for token in choices if token not in ends]), []
        ids.append(token)
        constraint.advance(token)
        assert len(ids) < most, f"no end after {tokenizer.decode(ids, skip_special=False)[:500]!r}"


def accepts(make: Callable[[], Constraint], tokenizer: Tokenizer, text: str) -> bool:
    """Whether the answer may be ``text``, as the tokenizer spells it, and end there."""
    constraint = make()
    for token in tokenizer.encode(text, add_special=False):
        if token not in allowed(constraint):
            return False
        constraint.advance(token)
    return tokenizer.eos_ids[0] in allowed(constraint)
