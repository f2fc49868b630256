"""The shapes that steps are compiled for. No other module knows them."""

from dataclasses import dataclass

SMALLEST_PREFILL = 16
PREFILL_GROWTH = 4
"""Each prefill bucket has this many times the tokens of the one before: few compilations, at most that much padding."""
TOKENS_PER_ROW = 8
"""Prefill buckets have room for one row per so many tokens."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """One compiled shape: T tokens of B rows."""

    tokens: int
    rows: int
    decode: bool

    def __str__(self) -> str:
        return f"decode {self.rows}" if self.decode else f"prefill {self.tokens} tokens, {self.rows} rows"


@dataclass(frozen=True, slots=True)
class Buckets:
    """All shapes of an engine, smallest first."""

    decode: tuple[Bucket, ...]
    prefill: tuple[Bucket, ...]

    @classmethod
    def of(cls, *, batch_size: int, prefill_tokens: int) -> "Buckets":
        """Powers of two up to the batch size for decode, of four up to the token budget for prefill."""
        sizes = _grow(1, 2, batch_size)
        decode = tuple(Bucket(size, size, decode=True) for size in sizes)
        lengths = _grow(min(SMALLEST_PREFILL, prefill_tokens), PREFILL_GROWTH, prefill_tokens)
        prefill = tuple(
            Bucket(length, min(batch_size, max(1, length // TOKENS_PER_ROW)), decode=False) for length in lengths
        )
        return cls(decode, prefill)

    @property
    def all(self) -> tuple[Bucket, ...]:
        """Every shape to compile."""
        return self.decode + self.prefill

    @property
    def largest(self) -> tuple[Bucket, Bucket]:
        """The two that need the most memory."""
        return self.decode[-1], self.prefill[-1]

    def fit(self, *, tokens: int, rows: int, decode: bool) -> Bucket:
        """The smallest bucket that holds a step."""
        for bucket in self.decode if decode else self.prefill:
            if bucket.tokens >= tokens and bucket.rows >= rows:
                return bucket
        raise ValueError(f"no bucket holds {tokens=} of {rows=}, {decode=}; the largest are {self.largest}")


def _grow(first: int, factor: int, last: int) -> list[int]:
    sizes = []
    while first < last:
        sizes.append(first)
        first *= factor
    return [*sizes, last]
