"""What steps are fed, as it stands on the device."""

from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int32

from jaxdeploy.engine.batch import StepLayout
from jaxdeploy.engine.buckets import Bucket


class DeviceInputs:
    """The packed inputs of every bucket, each at one address for good.

    A step leaves there what the step after it is fed if the same rows go on on the same pages (``StepLayout.advance``), as in most
    decode steps. The others upload theirs, which costs more than its bytes: an upload waits for the step that runs, and the host
    with it.

    Attributes:
        uploads: how often something had to be uploaded.
    """

    def __init__(self, layouts: dict[Bucket, StepLayout], device: Any):
        self.uploads = 0
        self._layouts = layouts
        self._known = {bucket: np.zeros(layout.size, np.int32) for bucket, layout in layouts.items()}
        self._arrays = {bucket: jax.device_put(zeros, device) for bucket, zeros in self._known.items()}

    def warm_up(self) -> None:
        """Compile the uploads."""
        for bucket, known in self._known.items():
            self._arrays[bucket] = _overwrite(self._arrays[bucket], known)

    def put(self, bucket: Bucket, packed: Int32[np.ndarray, " size"]) -> None:
        """See that the bucket's inputs are ``packed``, which a step is fed next."""
        if not np.array_equal(packed, self._known[bucket]):
            self._arrays[bucket] = _overwrite(self._arrays[bucket], packed)
            self.uploads += 1
        self._known[bucket] = self._layouts[bucket].advance(packed)

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
