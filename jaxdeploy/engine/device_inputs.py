"""What steps are fed, as it stands on the device."""

from array import array
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int32

from jaxdeploy.engine.batch import StepLayout
from jaxdeploy.engine.buckets import Bucket
from jaxdeploy.engine.scheduler import PlannedRow, StepPlan


@dataclass(frozen=True, slots=True)
class FedRow:
    """A row of the step before, and what may have changed in its sequence since."""

    row: PlannedRow
    slot: int | None
    pages: "array[int]"

    @classmethod
    def of(cls, row: PlannedRow) -> "FedRow":
        """As it is now."""
        return cls(row, row.sequence.slot, row.sequence.pages[:])

    def goes_on_as(self, row: PlannedRow) -> bool:
        """Is ``row`` the next token of the same answer, on the same pages, and known to the device alone?"""
        last, sequence = self.row, row.sequence
        return (
            sequence is last.sequence
            and row.start == last.start + 1
            and row.made == last.made + 1
            and row.samples == last.samples
            and len(sequence.token_ids) <= row.start
            and not (row.draft or last.draft)
            and sequence.slot == self.slot
            and sequence.pages == self.pages
        )


class DeviceInputs:
    """The packed inputs of every bucket, each at one address for good.

    A step leaves there what the step after it is fed if the same rows go on on the same pages (``StepLayout.advance``), as in most
    decode steps. The host neither writes those down nor uploads them, which would cost more than their bytes: an upload waits for
    the step that runs, and the host with it.

    Attributes:
        uploads: how often something had to be uploaded.
    """

    def __init__(self, layouts: dict[Bucket, StepLayout], device: Any):
        self.uploads = 0
        self._layouts = layouts
        self._fed: dict[Bucket, list[FedRow]] = {}
        self._arrays = {
            bucket: jax.device_put(np.zeros(layout.size, np.int32), device) for bucket, layout in layouts.items()
        }

    def warm_up(self) -> None:
        """Compile the uploads."""
        for bucket, layout in self._layouts.items():
            self._arrays[bucket] = _overwrite(self._arrays[bucket], np.zeros(layout.size, np.int32))

    def missing(self, bucket: Bucket, plan: StepPlan) -> Int32[np.ndarray, " size"] | None:
        """What must be uploaded before the bucket's next step, which is ``plan``; None if the last one left it there."""
        before = self._fed.get(bucket, [])
        if bucket.decode and len(before) == len(plan.rows):
            pairs = list(zip(before, plan.rows, strict=True))
            if all(fed.goes_on_as(row) for fed, row in pairs):
                self._fed[bucket] = [FedRow(row, fed.slot, fed.pages) for fed, row in pairs]
                return None
        self._fed[bucket] = [FedRow.of(row) for row in plan.rows]
        return self._layouts[bucket].pack(plan)

    def upload(self, bucket: Bucket, packed: Int32[np.ndarray, " size"]) -> None:
        """Put ``packed`` in the place of the bucket's inputs."""
        self._arrays[bucket] = _overwrite(self._arrays[bucket], packed)
        self.uploads += 1

    def take(self, bucket: Bucket) -> Int32[Array, " size"]:
        """The bucket's inputs, to be donated to its step."""
        return self._arrays[bucket]

    def keep(self, bucket: Bucket, advanced: Int32[Array, " size"]) -> None:
        """What the step left in their place."""
        self._arrays[bucket] = advanced


@partial(jax.jit, donate_argnums=0)
def _overwrite(old: Int32[Array, " size"], new: Int32[Array, " size"]) -> Int32[Array, " size"]:
    """``new`` in the place of ``old``, which is donated."""
    return jax.lax.dynamic_update_slice(old, new, (0,))
