"""Stored keys and values as operands of ``mma.m16n8k16``: which bytes a thread loads and how they become 16-bit floats.

A warp takes 16 tokens. Thread ``lane`` is (g, t) = (lane // 4, lane % 4). The products need no particular order of the head
dimension, so each thread takes bytes that lie together:

    K as A [16 tokens, 16 of H]   rows g and g + 8; of each row the t-th quarter of every ``4 * vector`` bytes
    V as A [16 of H, 16 tokens]   tokens 2t, 2t + 1, 2t + 8, 2t + 9; of each the g-th eighth of the row

Integers become float16 exactly: byte q under the byte 0x64 is 1024 + q, a nibble masked into 0x6400 is 1024 + q or 1024 + 16 q; one
more instruction for two values takes the 1024 away.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pallas_kernels import ptx
from pallas_kernels.ptx import Int
from pallas_kernels.ptx_float import halves_add, halves_fma, pack_words, permute, unpack_pair
from pallas_kernels.ptx_sync import equal

_HIGH_BYTES = 0x64646464
_BASE = 0x64006400  # 1024, twice
_MINUS_BASE = 0xE400E400
_SIXTEENTH, _MINUS_64 = 0x2C002C00, 0xD400D400


def _vector(size: int, parts: int) -> int:
    """Bytes of one load if a row of ``size`` bytes is dealt out to ``parts`` threads; 0 if it can't be."""
    return next((v for v in (16, 8, 4) if size % (parts * v) == 0), 0)


@dataclass(frozen=True, slots=True)
class Stored:
    """How a row (one token of one head) is stored.

    Attributes:
        head_dim: H.
        bits: 16, 8 or 4.
        dtype: of the pool if bits is 16, bf16 or f16.
    """

    head_dim: int
    bits: int
    dtype: str = "bf16"

    @property
    def row_bytes(self) -> int:
        """Of one token of one head, without its pair."""
        return self.head_dim * self.bits // 8

    @property
    def operand(self) -> str:
        """Type of both operands of the products."""
        return self.dtype if self.bits == 16 else "f16"

    @property
    def reason_not(self) -> str | None:
        """Why a warp can't take rows like this; None if it can."""
        if self.head_dim % 16 or self.head_dim > 256:
            return f"head_dim={self.head_dim} must be a multiple of 16 up to 256"
        halves = self.bits == 4 and self.row_bytes % 16 == 0
        if not (_vector(self.row_bytes, 8) or halves) or _vector(self.row_bytes, 4) < self.bits // 2:
            return f"head_dim={self.head_dim} at {self.bits} bits: an eighth of a row must be whole words"
        return None

    def key_words(self, row: Int, t: Int) -> list[Int]:
        """This thread's words of the key whose row starts at an address."""
        size = _vector(self.row_bytes, 4)
        words = []
        for start in range(0, self.row_bytes, 4 * size):
            words += ptx.load_shared(row + t * size + start, size // 4)
        return words

    def value_words(self, row: Int, g: Int) -> list[Int]:
        """This thread's words of the value whose row starts at an address; of the last one perhaps only the lower half."""
        part = self.row_bytes // 8
        size = _vector(self.row_bytes, 8)
        words = []
        if not size:
            # Eighths that end in half a word: every other one starts in the middle of one.
            start = row + (g * part // 4) * 4
            words = [ptx.load_shared(start + 4 * i)[0] for i in range(-(-part // 4))]
            moved = [permute(a, b, 0x5432) for a, b in zip(words, [*words[1:], words[-1]], strict=True)]
            return [m.select(equal(g % 2, 1), w) for m, w in zip(moved, words, strict=True)]
        for start in range(0, part, size):
            words += ptx.load_shared(row + g * part + start, size // 4)
        return words

    def key_steps(self, words: Sequence[Int]) -> list[tuple[Int, Int]]:
        """Two words of operand for each 16 of H."""
        if self.bits == 16:
            return list(zip(words[0::2], words[1::2], strict=True))
        if self.bits == 8:
            return [(_bytes(w, 0x4140), _bytes(w, 0x4342)) for w in words]
        steps = []
        for word in words:
            first, second, third, fourth = float16_nibbles(word)
            steps += [(first, second), (third, fourth)]
        return steps

    def query_steps(self, row: Int, t: Int, dtype: str) -> list[tuple[Int, Int]]:
        """The query's values in the order of ``key_steps``; its row is [H] of ``dtype`` in shared memory."""
        size = _vector(self.row_bytes, 4)
        values = size * 8 // self.bits  # that a thread takes at a time
        steps = []
        for start in range(0, self.head_dim, 4 * values):
            words = []
            load = min(16, 2 * values)
            for part in range(0, 2 * values, load):
                words += ptx.load_shared(row + t * (2 * values) + (2 * start + part), load // 4)
            if self.bits != 16 and dtype != "f16":
                words = [pack_words(*unpack_pair(w, dtype), "f16") for w in words]
            if self.bits == 4:
                # Nibbles 4 apart sit in one word of operand.
                words = [
                    permute(words[i + j], words[i + j + 2], selector)
                    for i in range(0, len(words), 4)
                    for j in (0, 1)
                    for selector in (0x5410, 0x7632)
                ]
            steps += list(zip(words[0::2], words[1::2], strict=True))
        return steps

    def value_rows(self, first: Sequence[Int], second: Sequence[Int]) -> list[Int]:
        """For each of this thread's H / 8 values the words (first token, second token)."""
        rows = []
        for a, b in zip(first, second, strict=True):
            if self.bits == 16:
                rows += [permute(a, b, 0x5410), permute(a, b, 0x7632)]
            elif self.bits == 8:
                for pairs in (permute(a, b, 0x5140), permute(a, b, 0x7362)):
                    rows += float16_bytes(pairs)
            else:
                rows += [*float16_nibbles(permute(a, b, 0x5410)), *float16_nibbles(permute(a, b, 0x7632))]
        return rows[: self.head_dim // 8]


def float16_bytes(word: Int) -> list[Int]:
    """Bytes (0, 1), (2, 3) of a word as float16."""
    return [_bytes(word, 0x4140), _bytes(word, 0x4342)]


def _bytes(word: Int, selector: int) -> Int:
    """Two bytes of a word as float16."""
    return halves_add(permute(word, ptx.constant(_HIGH_BYTES), selector), _MINUS_BASE)


def float16_nibbles(word: Int) -> list[Int]:
    """Nibbles (0, 4), (1, 5), (2, 6), (3, 7) of a word as float16."""
    values = []
    for part in (word, word >> 8):
        values.append(halves_add(ptx.and_or(part, 0x000F000F, _BASE), _MINUS_BASE))
        values.append(halves_fma(ptx.and_or(part, 0x00F000F0, _BASE), _SIXTEENTH, _MINUS_64))
    return values
