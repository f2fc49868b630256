"""Every compiled program of an engine, and the memory plan that they are made for."""

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from jaxdeploy.cache.kv_pages import KVPages
from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.engine.buckets import Bucket, Buckets
from jaxdeploy.engine.compile_pool import MOST_THREADS, CompilePool, threads_that_fit
from jaxdeploy.engine.limits import Limits
from jaxdeploy.engine.memory import plan_memory
from jaxdeploy.engine.phases import timed
from jaxdeploy.engine.program_cache import ProgramCache
from jaxdeploy.engine.program_set import ProgramName, ProgramSet, create_pages, create_scores, create_state
from jaxdeploy.engine.step import LEAST_DENSE_ROWS, Scores
from jaxdeploy.engine.tracers import Tracers
from jaxdeploy.model.decoder import Decoder
from jaxdeploy.sampling.extent import Extent
from jaxdeploy.sampling.slots import SlotState

Progress = Callable[[str, int, int], None]
"""Called with a phase ("load", "compile"), what is done and what there is to do."""


class StepPrograms:
    """What an engine runs, compiled for shapes alone: no weight need be there yet, so it can be made while they are loaded.

    Args:
        weights: arrays, or ShapeDtypeStructs of those to come, int4 in tiles on a GPU.

    Attributes:
        memory: what the device will hold.
        wanted: every program, for shapes alone.
        models, samplers: the programs, once compiled; the latter by extent and number of rows.
        start_seconds: what getting them took, by phase.
    """

    def __init__(self, model: Decoder, weights: dict, options: EngineConfig, limits: Limits, device: Any):
        config = model.config
        self.start_seconds: dict[str, float] = {}
        self.buckets = Buckets.of(
            batch_size=limits.batch_size,
            prefill_tokens=limits.prefill_tokens,
            places=1 + options.num_speculative_tokens,
            least_rows=LEAST_DENSE_ROWS if device.platform == "gpu" and config.quantization is None else 1,
            prompts_alone=device.platform == "gpu",
        )
        self.models: dict[Bucket, Callable] = {}
        self.samplers: dict[tuple[Extent, int], Callable] = {}
        self._config, self._options, self._limits = config, options, limits
        self._cache = ProgramCache.beside_jax()
        self._tracers = Tracers.for_platform(device.platform)
        with timed(self.start_seconds, "plan memory"), contextlib.ExitStack() as unless_planned:
            unless_planned.enter_context(self._tracers)
            self.memory = plan_memory(
                model, weights, options, limits, self.buckets, device, self._cache, on_compiling=self._tracers.start
            )
            unless_planned.pop_all()
        self.wanted = ProgramSet.of(
            model, weights, options, limits, self.buckets, num_pages=self.memory.num_pages, platform=device.platform
        ).placed(SingleDeviceSharding(device))

    def create_pages(self) -> KVPages:
        """The pool that the programs work on."""
        return create_pages(self._config, self._options, self._limits, self.memory.num_pages)

    def create_state(self) -> SlotState:
        """The sampler's state."""
        return create_state(self._config, self._limits)

    def create_scores(self) -> dict[int, Scores]:
        """What models hand to samplers, by number of rows."""
        return create_scores(self._config, self.buckets)

    def fit(self, weights: dict) -> bool:
        """Are these arrays what the programs are made for?"""
        here = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(weights)]
        there = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(self.wanted.weights)]
        return here == there and jax.tree.structure(weights) == jax.tree.structure(self.wanted.weights)

    def compile(self, progress: Progress | None = None, cancelled: threading.Event | None = None) -> None:
        """Get every program: from the program cache, or traced (``Tracers``) and compiled in parallel (XLA).

        Args:
            cancelled: once it is set, no more programs are traced.

        Raises:
            CancelledError: ``cancelled`` was set.
        """
        names = self.wanted.names()
        done = 0

        def report(finished: int = 0) -> None:
            nonlocal done
            done += finished
            if progress:
                progress("compile", done, len(names))

        def keep(name: ProgramName, program: Callable) -> None:
            if isinstance(name, Bucket):
                self.models[name] = program
            else:
                self.samplers[name] = program
            report(1)

        def check() -> None:
            if cancelled is not None and cancelled.is_set():
                raise CancelledError

        free = self.memory.device_bytes - self.memory.weight_bytes
        threads = threads_that_fit(self.wanted.weights, free) if self.wanted.platform == "gpu" else MOST_THREADS
        compiling = CompilePool(self._cache.compile, threads)
        with self._tracers, compiling, ThreadPoolExecutor(MOST_THREADS) as pool:
            check()
            report()
            missing = []
            with timed(self.start_seconds, "load steps"):
                loaded = pool.map(lambda name: self._cache.load(self.wanted[name]), names)
                for name, found in zip(names, loaded, strict=True):
                    if found is None:
                        missing.append(name)
                    else:
                        keep(name, found)
            with timed(self.start_seconds, "trace steps"):
                check()
                for name, lowered in self._tracers.lower(self.wanted, missing):
                    compiling.submit(name, self.wanted[name], lowered)
                    check()
            with timed(self.start_seconds, "compile steps"):
                for name, program in compiling.results():
                    keep(name, program)
