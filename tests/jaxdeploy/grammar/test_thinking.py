"""Grammars behind a model's thinking."""

import random

import pytest
from support.byte_tokenizer import ByteTokenizer
from support.grammar_walks import allowed, random_answer

from jaxdeploy.grammar.compiler import GrammarCompiler
from jaxdeploy.grammar.spec import GrammarSpec
from jaxdeploy.grammar.thinking import AfterThinking
from jaxdeploy.grammar.thinking_tags import ThinkingTags

PIECES = (b">\n", b">\n\n", b'>{"', b"think>x", b"a</think>b", b"</", b"<th", b"\n\n", b" <")
CHOICES = ("yes", "no", "<tomorrow")


def make(spec_texts=CHOICES, *, tags: tuple[str, ...] = (), inside: bool = True):
    tokenizer = ByteTokenizer(tags=tags, pieces=PIECES)
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size + 9)
    return tokenizer, compiler.compile(GrammarSpec.choice(spec_texts), thinking=ThinkingTags(inside=inside))


def feed(constraint, tokenizer, *pieces: bytes) -> None:
    for piece in pieces:
        token = next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == piece)
        assert token in allowed(constraint), piece
        constraint.advance(token)


def texts(constraint, tokenizer) -> set[bytes]:
    return {tokenizer.token_bytes(token) for token in allowed(constraint)}


@pytest.mark.parametrize(
    "pieces",
    [
        [b"h", b"m", b"<", b"/", b"t", b"h", b"i", b"n", b"k", b">"],
        [b"</", b"t", b"h", b"i", b"n", b"k", b">\n"],
        [b"<", b"<", b"</", b"t", b"h", b"i", b"n", b"k", b">\n\n"],
        [b"<", b"/", b"t", b"h", b"i", b"n", b"<", b"</", b"t", b"h", b"i", b"n", b"k", b">", b"\n", b"\n\n"],
    ],
)
def test_grammar_starts_behind_the_end_tag(pieces):
    tokenizer, constraint = make()
    constraint = constraint()
    feed(constraint, tokenizer, *pieces, b"n", b"o")
    assert allowed(constraint) == sorted(tokenizer.eos_ids)


def test_the_end_tag_as_one_token():
    tokenizer, constraint = make(tags=("</think>",))
    constraint = constraint()
    feed(constraint, tokenizer, b"y", b"</think>")
    assert texts(constraint, tokenizer) == {b"y", b"n", b"<", b"<t", b"\n", b"\n\n"} - {b"<t"}


def test_thinking_can_not_end_the_answer_nor_run_over_its_own_end():
    tokenizer, constraint = make()
    constraint = constraint()
    free = texts(constraint, tokenizer)
    assert not {b"<eos>", b"<|im_end|>", b"a</think>b"} & free
    assert {b'>{"', b"think>x", b">\n", b"\xc3"} <= free
    feed(constraint, tokenizer, b"</")
    assert b"think>x" not in texts(constraint, tokenizer)
    feed(constraint, tokenizer, b"t", b"h", b"i", b"n", b"k")
    assert b'>{"' not in texts(constraint, tokenizer)
    assert {b">", b">\n", b">\n\n", b"x"} <= texts(constraint, tokenizer)
    feed(constraint, tokenizer, b"x")
    assert texts(constraint, tokenizer) == free


def test_at_most_two_tokens_of_newlines_behind_the_thinking():
    tokenizer, constraint = make(tags=("</think>",))
    constraint = constraint()
    feed(constraint, tokenizer, b"</think>", b"\n", b"\n\n")
    assert texts(constraint, tokenizer) == {b"y", b"n", b"<"}


def test_model_that_may_open_the_thinking_itself():
    tokenizer, constraint = make(inside=False)
    opened = constraint()
    assert texts(opened, tokenizer) == {b"y", b"n", b"<", b"<th"}
    feed(opened, tokenizer, b"<th")
    assert texts(opened, tokenizer) == {b"i"}
    feed(opened, tokenizer, b"i", b"n", b"k", b">", b"q")
    assert isinstance(opened, AfterThinking)
    assert opened.thinking
    direct = constraint()
    feed(direct, tokenizer, b"y", b"e", b"s")
    assert isinstance(direct, AfterThinking)
    assert not direct.thinking
    assert allowed(direct) == sorted(tokenizer.eos_ids)


def test_a_token_that_begins_both_the_tag_and_the_answer_begins_the_answer():
    tokenizer, constraint = make(inside=False)
    constraint = constraint()
    feed(constraint, tokenizer, b"<", b"t", b"o")
    assert texts(constraint, tokenizer) == {b"m"}


def test_random_thinking_always_ends_in_an_answer():
    tokenizer, constraint = make(tags=("</think>",))
    for seed in range(10):
        text = random_answer(constraint, tokenizer, random.Random(seed))
        assert text.partition("</think>")[2].lstrip("\n") in CHOICES
