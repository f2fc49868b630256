"""The shapes that steps are compiled for. No other module knows them."""

from collections.abc import Sequence
from dataclasses import dataclass

SMALLEST_PREFILL = 16
SMALL_PREFILL = 256
"""Prefill buckets grow by four up to here, where a step costs about the same however few tokens it has, and by two beyond, where
padding costs as much as tokens do."""
SAMPLER_GROWTH = 8
"""A sampler's time is small beside a model's, and there are several of each size: few sizes, more padding."""


LEAST_PROMPT_TOKENS = 1024
"""Of steps of prompts alone. Fewer tokens cost about the same with and without answers that ride along."""
PROMPT_GROWTH = 64
"""Tokens for each row of a step of prompts alone: what tells tiles of prompts from no tiles is done for all rows there could be."""
CHECKING_GROWTH = 4
MOST_CHECKING_ROWS = 16
"""Of a step that checks drafts and reads a context once for all of a row's tokens. It keeps a partial result of each token for each
part of its context: 67 MB for 4 rows of 4 tokens, 32 heads of 128 (``pallas_kernels/paged_attention/LOG.md``). Where there are more
rows, they fill a GPU without their contexts being cut."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """One compiled shape of the model: T tokens of B rows, handed to a sampler of ``sampler_rows``.

    Attributes:
        decode: every row has one token.
        checks: otherwise, the most that a row has, if they are few; 0 if there may be any number.
        mixed: many rows may have one token, answers that ride along with prompts. Attention treats them as in decode.
    """

    tokens: int
    rows: int
    decode: bool
    sampler_rows: int
    checks: int = 0
    mixed: bool = False

    def __str__(self) -> str:
        if self.decode:
            return f"decode {self.rows}"
        if self.checks:
            return f"check {self.rows} rows of {self.checks} tokens"
        return f"{'mixed' if self.mixed else 'prefill'} {self.tokens} tokens, {self.rows} rows"


@dataclass(frozen=True, slots=True)
class Buckets:
    """All shapes of an engine, smallest first.

    Attributes:
        checking: for steps that check drafts and feed no prompts; none without drafts.
    """

    decode: tuple[Bucket, ...]
    prefill: tuple[Bucket, ...]
    checking: tuple[Bucket, ...] = ()

    @classmethod
    def of(
        cls, *, batch_size: int, prefill_tokens: int, places: int = 1, least_rows: int = 1, prompts_alone: bool = False
    ) -> "Buckets":
        """Powers of two up to the batch size for decode and up to the token budget for prefill.

        Args:
            places: at how many places a row may sample in a prefill step: one more than a draft has tokens.
            least_rows: of a decode step; the smallest are padded to it.
            prompts_alone: steps of many tokens and no answers have shapes of their own.
        """
        sizes = _grow(least_rows, 2, max(batch_size, least_rows))
        samplers = _grow(1, SAMPLER_GROWTH, max(batch_size * places, least_rows))

        def bucket(tokens: int, rows: int, *, decode: bool = False, checks: int = 0, mixed: bool = False) -> Bucket:
            sampled = rows if decode else min(tokens, rows * places)
            return Bucket(tokens, rows, decode, next(size for size in samplers if size >= sampled), checks, mixed)

        decode = tuple(bucket(size, size, decode=True) for size in sizes)
        small = min(SMALL_PREFILL, prefill_tokens)
        lengths = [*_grow(min(SMALLEST_PREFILL, small), 4, small)[:-1], *_grow(small, 2, prefill_tokens)]
        # As many rows as there are tokens: one-token rows of running answers ride along with a prompt.
        prefill = [bucket(length, min(length, batch_size), mixed=True) for length in lengths]
        if prompts_alone:
            prefill += [
                bucket(length, min(-(-length // PROMPT_GROWTH), batch_size))
                for length in lengths
                if length >= LEAST_PROMPT_TOKENS
            ]
            prefill.sort(key=lambda each: (each.tokens, each.mixed))
        few = _grow(1, CHECKING_GROWTH, min(batch_size, MOST_CHECKING_ROWS)) if places > 1 else []
        checking = tuple(bucket(rows * places, rows, checks=places) for rows in few)
        return cls(decode, tuple(prefill), checking)

    @property
    def all(self) -> tuple[Bucket, ...]:
        """Every shape to compile."""
        return self.decode + self.checking + self.prefill

    @property
    def largest(self) -> tuple[Bucket, ...]:
        """Those that need the most memory, of each kind the last."""
        return self.decode[-1], self.prefill[-1], *self.checking[-1:]

    @property
    def sampler_rows(self) -> tuple[int, ...]:
        """Every number of rows that a sampler has."""
        return tuple(sorted({bucket.sampler_rows for bucket in self.all}))

    def fit(self, counts: Sequence[int], *, decode: bool) -> Bucket:
        """The smallest bucket that holds a step.

        Args:
            counts: tokens of each row.
            decode: see ``StepPlan``.
        """
        tokens, rows, most = sum(counts), len(counts), max(counts)
        checking = [bucket for bucket in self.checking if most <= bucket.checks]
        for bucket in self.decode if decode else (*checking, *self.prefill):
            takes_singles = bucket.mixed or bucket.decode or bucket.checks
            if bucket.tokens >= tokens and bucket.rows >= rows and (takes_singles or 1 not in counts):
                return bucket
        raise ValueError(f"no bucket holds {tokens=} of {rows=}, {decode=}; the largest are {self.largest}")


def _grow(first: int, factor: int, last: int) -> list[int]:
    sizes = []
    while first < last:
        sizes.append(first)
        first *= factor
    return [*sizes, last]
