"""Holds what lives on the device (weights, pages, sampler state) and the compiled steps."""

import logging
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxdeploy import runtime
from jaxdeploy.cache.sizing import MemoryPlan
from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.engine.buckets import Bucket
from jaxdeploy.engine.device_inputs import DeviceInputs
from jaxdeploy.engine.limits import Limits
from jaxdeploy.engine.phases import timed
from jaxdeploy.engine.scheduler import StepPlan
from jaxdeploy.engine.small_chunks import keep_small_chunks_apart
from jaxdeploy.engine.step_programs import Progress, StepPrograms
from jaxdeploy.errors import MemoryBudgetError
from jaxdeploy.model.decoder import Decoder
from jaxdeploy.sampling.extent import Extent
from jaxdeploy.sampling.sampler import Sampled
from jaxdeploy.sampling.slots import SlotOptions, SlotState
from jaxdeploy.weights.packing_together import allocate_beside, out_of_memory
from jaxdeploy.weights.tiled_tensor import tile_weights

log = logging.getLogger(__name__)
HOST_WORK = ("pack", "upload", "call", "copy", "wait")
"""Writing a plan down, uploading it, calling the programs, starting the copy of what they sampled, waiting for that."""
COUNT_TOKENS = 512
"""Tokens that are noted at a time for a slot's penalties."""


NO_REPORT: Any = (None, None, None)
"""In place of log-probabilities where the program computes none."""


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A step that runs or has run, and its results on the device; ``wanted`` names those that are copied to the host."""

    plan: StepPlan
    sampled: Sampled
    wanted: tuple[str, ...]


class Executor:
    """Runs plans. Everything is compiled by ``warm_up``; nothing compiles afterwards.

    On a GPU the executor takes the parameter tree over: int4 rows become tiles, and the rows are freed as it goes.

    Args:
        programs: compiled while the weights were loaded, or being compiled by ``warm_up`` if None.

    Attributes:
        steps: how many steps ran.
        host_seconds: what the host spent on them, in all, by HOST_WORK.
    """

    def __init__(
        self,
        model: Decoder,
        params: dict,
        options: EngineConfig,
        limits: Limits,
        programs: StepPrograms | None = None,
    ):
        device = next(iter(jax.tree.leaves(params)[0].devices()))
        self._start_seconds: dict[str, float] = {}
        if device.platform == "gpu":
            with timed(self._start_seconds, "tile weights"):
                params = jax.block_until_ready(tile_weights(params))
        if programs is not None and not programs.fit(params):
            log.warning("the programs compiled early don't fit the weights; compiling again")
            programs = None
        self.programs = programs or StepPrograms(model, params, options, limits, device)
        self.model, self.limits = model, limits
        with timed(self._start_seconds, "allocate pages"):
            try:
                self.params, self.pages = allocate_beside(params, self.programs.create_pages)
            except jax.errors.JaxRuntimeError as error:
                if not out_of_memory(error):
                    raise
                raise MemoryBudgetError(
                    f"the device has no room for a KV cache of {self.memory.pool_bytes / 2**30:.2f} GiB beside weights of "
                    f"{self.memory.weight_bytes / 2**30:.2f} GiB, though it should; does another program use it? A lower "
                    f"cache_max_entry_count than {options.cache_max_entry_count} asks for less"
                ) from error
        # Committed to the device, as what a step returns is: `admit` and `set_mask` would compile once more otherwise.
        self.state = jax.device_put(self.programs.create_state(), device)
        self._scores = jax.device_put(self.programs.create_scores(), device)
        self.steps = 0
        self.host_seconds: dict[str, float] = dict.fromkeys(HOST_WORK, 0.0)
        self._inputs = DeviceInputs(self.programs.wanted.layouts, device)
        self._small_chunks = keep_small_chunks_apart(device) if device.platform == "gpu" else None
        self._compiled_by_warm_up = 0
        self._masked: set[int] = set()  # slots that a grammar restricts now
        self._admit = jax.jit(SlotState.admit, donate_argnums=0)
        self._set_mask = jax.jit(SlotState.set_mask, donate_argnums=0)
        self._count = jax.jit(SlotState.count, donate_argnums=0)

    def warm_up(self, progress: Progress | None = None) -> None:
        """Have every program ready, those of the sampler's state included."""
        if not self.programs.models:
            self.programs.compile(progress)
        nobody = np.int32(self.limits.batch_size)
        words = self.state.mask.shape[1]
        self.state = self._set_mask(self.state, nobody, np.zeros(words, np.uint32))
        self.state = self._admit(self.state, SlotOptions.neutral().packed(self.limits.batch_size))
        self.count(self.limits.batch_size, [], 0)
        self._inputs.warm_up()
        self._compiled_by_warm_up = runtime.compilations()

    @property
    def memory(self) -> MemoryPlan:
        """What the device holds."""
        return self.programs.memory

    @property
    def start_seconds(self) -> dict[str, float]:
        """What getting ready took, by phase."""
        return {**self.programs.start_seconds, **self._start_seconds}

    @property
    def uploads(self) -> int:
        """How many steps the host had to tell what they are fed; the others followed from the one before."""
        return self._inputs.uploads

    @property
    def compile_misses(self) -> int:
        """Programs compiled in this process since the warm-up; steps never add to it, the first score or embedding does."""
        return runtime.compilations() - self._compiled_by_warm_up

    def admit(self, slot: int, options: SlotOptions) -> None:
        """Hand a slot to a new sequence."""
        self._masked.discard(slot)
        self.state = self._admit(self.state, options.packed(slot))

    def count(self, slot: int, tokens: list[int], prompt_len: int) -> None:
        """Note the tokens that a slot's penalties must know: all there are at its admission; steps add what they sample."""
        for start in range(0, max(len(tokens), 1), COUNT_TOKENS):
            part = tokens[start : start + COUNT_TOKENS]
            padded = np.zeros(COUNT_TOKENS, np.int32)
            padded[: len(part)] = part
            places = np.arange(start, start + COUNT_TOKENS)
            slots = np.full(COUNT_TOKENS, slot, np.int32)
            self.state = self._count(self.state, slots, padded, places < prompt_len, places < len(tokens))

    def set_mask(self, slot: int, mask: np.ndarray | None) -> None:
        """Restrict a slot's next token to the set bits of ``mask``; None lifts the restriction."""
        if mask is None:
            if slot not in self._masked:
                return
            self._masked.discard(slot)
            words = np.full(self.state.mask.shape[1], 2**32 - 1, np.uint32)
        else:
            self._masked.add(slot)
            words = np.zeros(self.state.mask.shape[1], np.uint32)
            words[: len(mask)] = mask[: len(words)]
        self.state = self._set_mask(self.state, np.int32(slot), words)

    def launch(self, plan: StepPlan) -> "LaunchedStep":
        """Start one step, and the copy of its tokens to the host; waits for neither."""
        bucket = self.programs.buckets.fit([row.count for row in plan.rows], decode=plan.decode)
        with timed(self.host_seconds, "pack"):
            packed = self._inputs.missing(bucket, plan)
        if packed is not None:
            with timed(self.host_seconds, "upload"):
                self._inputs.upload(bucket, packed)
        with timed(self.host_seconds, "call"):
            sampled = self._call(bucket, plan)
        logprobs = any(row.sequence.request.config.logprobs is not None for row in plan.rows)
        reported = logprobs and sampled.logprobs is not None
        step = LaunchedStep(plan, sampled, wanted=sampled._fields if reported else ("tokens",))
        with timed(self.host_seconds, "copy"):
            for name in step.wanted:
                getattr(sampled, name).copy_to_host_async()
        self.steps += 1
        return step

    def _call(self, bucket: Bucket, plan: StepPlan) -> Sampled:
        """Run the model on the bucket's inputs, and the sampler that the plan's rows need."""
        rows = bucket.sampler_rows
        self.pages, self._scores[rows], last_token, advanced, tokens = self.programs.models[bucket](
            self.params, self.pages, self._scores[rows], self.state.last_token, self._inputs.take(bucket)
        )
        self._inputs.keep(bucket, advanced)
        self.state = replace(self.state, last_token=last_token)
        extent = Extent.most(row.sequence.extent for row in plan.rows if row.samples)
        if extent is Extent.ALL:
            self.state, sampled = self.programs.samplers[extent, rows](self.state, self._scores[rows])
            return sampled
        if extent is not Extent.GREEDY:
            rest = replace(self.state, last_token=None)
            last_token, tokens = self.programs.samplers[extent, rows](last_token, rest, self._scores[rows])
            self.state = replace(self.state, last_token=last_token)
        return Sampled(tokens, *NO_REPORT)

    def read(self, step: "LaunchedStep") -> Sampled:
        """What a step sampled, as numpy arrays: row by row of the plan, a row's places in order, then padding.

        Waits until the step has run.
        """
        with timed(self.host_seconds, "wait"):
            fetched = {name: np.asarray(getattr(step.sampled, name)) for name in step.wanted}
        return step.sampled._replace(**fetched)
