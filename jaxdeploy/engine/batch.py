"""From a plan to the one array that a step uploads, back to named inputs inside the compiled step, and on to the next step's."""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Int32

from jaxdeploy.engine.buckets import Bucket
from jaxdeploy.engine.scheduler import StepPlan
from jaxdeploy.model.inputs import ModelInputs

FROM_DEVICE = -1
"""A token that the device knows already: the one its slot sampled last."""
ALIGNMENT = 64
"""Integers that each part's place is rounded up to: 256 bytes, which a kernel wants of an argument that XLA hands on as a view."""


class StepInputs(NamedTuple):
    """What a step needs besides weights, pages and sampler state.

    Attributes:
        from_device: tokens that only the device knows.
        slots: of the rows.
        picks: the token whose hidden state each of R places samples from; places of one row follow each other.
        sampler_rows: slot, whether the token is kept for the next step, and tokens made before, of each place.
    """

    model: ModelInputs
    from_device: Bool[Array, " T"]
    slots: Int32[Array, " B"]
    picks: Int32[Array, " R"]
    sampler_rows: Int32[Array, "3 R"]


@dataclass(frozen=True)
class StepLayout:
    """Where each input lies in the packed int32 array of a bucket.

    Attributes:
        table_width: W, pages of the longest sequence.
        padding_slot: slot of rows that hold no sequence.
    """

    bucket: Bucket
    table_width: int
    padding_slot: int

    def fields(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each part, in order."""
        t, b, r = self.bucket.tokens, self.bucket.rows, self.bucket.sampler_rows
        per_token = dict.fromkeys(("tokens", "positions", "rows"), (t,))
        per_row = dict.fromkeys(("context_lens", "rope_lengths", "slots"), (b,))
        per_place = {"picks": (r,), "sampler_rows": (3, r)}
        return {**per_token, **per_row, **per_place, "query_start": (b + 1,), "block_table": (b, self.table_width)}

    @property
    def size(self) -> int:
        """Length of the packed array."""
        _, last, _ = self._places[-1]
        return _rounded(last)

    @cached_property
    def _places(self) -> list[tuple[str, int, tuple[int, ...]]]:
        """Name, end and shape of each part."""
        places, start = [], 0
        for name, shape in self.fields().items():
            end = start + math.prod(shape)
            places.append((name, end, shape))
            start = _rounded(end)
        return places

    def _split(self, packed) -> dict:
        return {name: packed[end - math.prod(shape) : end].reshape(shape) for name, end, shape in self._places}

    def pack(self, plan: StepPlan) -> np.ndarray:
        """The inputs of a plan, int32 [size]."""
        packed = np.zeros(self.size, np.int32)
        part, rows = self._split(packed), plan.rows
        sequences, counts = [row.sequence for row in rows], [row.count for row in rows]
        tokens: list[int] = []
        positions: list[int] = []
        places: list[tuple[int, int | None, bool, int]] = []
        for row in rows:
            known = row.count - len(row.draft)
            # What is missing was sampled for this slot in the step before, and has not been read yet.
            tokens += row.sequence.token_ids[row.start : row.start + known] or [FROM_DEVICE]
            tokens += row.draft
            positions += range(row.start, row.start + row.count)
            # Which token of a draft's row goes on is for the host to say, and what it feeds next.
            kept, first = row.samples and not row.draft, len(tokens) - row.places
            places += [(first + i, row.sequence.slot, kept, row.made + i) for i in range(row.places)]
        # One assignment a part, not one a row: this is host time of every step.
        total, b = len(tokens), len(rows)
        part["tokens"][:total] = tokens
        part["tokens"][total:] = FROM_DEVICE
        part["positions"][:total] = positions
        part["rows"][:total] = np.repeat(np.arange(b), counts)
        part["query_start"][1 : b + 1] = list(accumulate(counts))
        part["query_start"][b + 1 :] = total
        part["context_lens"][:b] = [row.start + row.count for row in rows]
        part["rope_lengths"][:b] = [sequence.rope_length for sequence in sequences]
        part["slots"][:b] = [sequence.slot for sequence in sequences]
        part["slots"][b:] = self.padding_slot
        part["picks"][: len(places)] = [pick for pick, *_ in places]
        part["sampler_rows"][0, len(places) :] = self.padding_slot
        part["sampler_rows"][:, : len(places)] = np.array(places).T[1:]
        for line, sequence in zip(part["block_table"], sequences, strict=False):
            line[: len(sequence.pages)] = sequence.pages
        return packed

    def advance[Packed: (np.ndarray, Array)](self, packed: Packed) -> Packed:
        """What a decode step is fed after the one that was fed ``packed``, if the same rows go on on the same pages.

        The step works this out on the device, so such a step uploads nothing (``DeviceInputs`` knows which they are). A prefill
        step is not followed by one like it: its inputs stay as they are.
        """
        if not self.bucket.decode:
            return packed
        arrays: Any = packed.__array_namespace__()
        number = arrays.arange(self.size)

        def within(name: str) -> Any:
            """True for a part, or for the last line of one that has several."""
            end, shape = next((end, shape) for part, end, shape in self._places if part == name)
            return (number >= end - shape[-1]) & (number < end)

        # What becomes of a value depends on it alone, so XLA writes it in its place. What counts on is zero in padding only.
        counts = within("positions") | within("context_lens") | within("sampler_rows")
        return arrays.where(within("tokens"), FROM_DEVICE, packed + (counts & (packed > 0)))

    def unpack(self, packed: Int32[Array, " size"]) -> StepInputs:
        """The inputs by name, inside the compiled step."""
        part = self._split(packed)
        model = ModelInputs(
            tokens=part["tokens"],
            positions=part["positions"],
            rows=part["rows"],
            query_start=part["query_start"],
            context_lens=part["context_lens"],
            rope_lengths=part["rope_lengths"],
            block_table=part["block_table"],
            decode=self.bucket.decode,
            max_queries=self.bucket.checks or None,
            mixed=self.bucket.mixed,
        )
        return StepInputs(
            model=model,
            from_device=part["tokens"] == FROM_DEVICE,
            slots=part["slots"],
            picks=part["picks"],
            sampler_rows=part["sampler_rows"],
        )


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
