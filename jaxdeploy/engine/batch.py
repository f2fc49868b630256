"""From a plan to the one array that a step uploads, and back to named inputs inside the compiled step."""

from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

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
    """What a step needs besides weights, pages and sampler state."""

    model: ModelInputs
    from_device: Bool[Array, " T"]
    slots: Int32[Array, " B"]
    samples: Bool[Array, " B"]
    made: Int32[Array, " B"]


@dataclass(frozen=True, slots=True)
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
        t, b = self.bucket.tokens, self.bucket.rows
        per_token = dict.fromkeys(("tokens", "positions", "rows"), (t,))
        per_row = dict.fromkeys(("context_lens", "rope_lengths", "slots", "samples", "made"), (b,))
        return {**per_token, **per_row, "query_start": (b + 1,), "block_table": (b, self.table_width)}

    @property
    def size(self) -> int:
        """Length of the packed array."""
        return sum(self._rooms())

    def _rooms(self) -> list[int]:
        return [-(-int(np.prod(shape)) // ALIGNMENT) * ALIGNMENT for shape in self.fields().values()]

    def _split(self, packed) -> dict:
        rooms = self._rooms()
        starts = accumulate(rooms, initial=0)
        return {
            name: packed[start : start + int(np.prod(shape))].reshape(shape)
            for (name, shape), start in zip(self.fields().items(), starts, strict=False)
        }

    def pack(self, plan: StepPlan) -> np.ndarray:
        """The inputs of a plan, int32 [size]."""
        packed = np.zeros(self.size, np.int32)
        part = self._split(packed)
        part["slots"][:] = self.padding_slot
        start = 0
        for i, row in enumerate(plan.rows):
            sequence, known, end = row.sequence, row.start, start + row.count
            # What is missing was sampled for this slot in the step before, and has not been read yet.
            part["tokens"][start:end] = sequence.token_ids[known : known + row.count] or FROM_DEVICE
            part["positions"][start:end] = np.arange(known, known + row.count)
            part["rows"][start:end] = i
            part["query_start"][i + 1 :] = end
            part["context_lens"][i] = known + row.count
            part["rope_lengths"][i] = sequence.rope_length
            part["slots"][i] = sequence.slot
            part["samples"][i] = row.samples
            part["made"][i] = row.made
            part["block_table"][i, : len(sequence.pages)] = sequence.pages
            start = end
        return packed

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
        )
        return StepInputs(
            model=model,
            from_device=part["tokens"] == FROM_DEVICE,
            slots=part["slots"],
            samples=part["samples"] == 1,
            made=part["made"],
        )
