"""Compiles an engine's programs while its weights are loaded."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import jax
from flax.core import meta

from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.config.model import ModelConfig
from jaxdeploy.engine.limits import Limits
from jaxdeploy.engine.step_programs import Progress, StepPrograms
from jaxdeploy.lite.head import with_rounded_head
from jaxdeploy.model.decoder import Decoder, describe_parameters
from jaxdeploy.weights.tiled_tensor import tile_weights


class EarlyPrograms:
    """A context in which weights are loaded. Where it ``pays_off``, programs are traced and compiled on a thread meanwhile.

    An error in the block has the compilation give up.
    """

    def __init__(self, config: ModelConfig, options: EngineConfig, limits: Limits, progress: Progress | None = None):
        self._config, self._options, self._limits, self._progress = config, options, limits, progress
        self._device = jax.devices()[0]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jaxdeploy-compile")
        self._cancelled = threading.Event()
        self._job: Future[StepPrograms] | None = None

    def __enter__(self) -> "EarlyPrograms":
        if pays_off(self._device.platform):
            self._job = self._thread.submit(self._compile)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._cancelled.set()
        self._thread.shutdown(wait=error is not None)

    def programs(self) -> StepPrograms | None:
        """The compiled programs, once they are ready; None where it doesn't pay off.

        Raises:
            MemoryBudgetError: see ``plan_memory``.
        """
        return None if self._job is None else self._job.result()

    def _compile(self) -> StepPrograms:
        config, options, dtype = self._config, self._options, self._limits.dtype
        tiled = self._device.platform == "gpu"
        weights = described_weights(config, dtype, lm_head_bits=options.lm_head_bits, tiled=tiled)
        made = StepPrograms(Decoder(config, dtype), weights, options, self._limits, self._device)
        made.compile(self._progress, self._cancelled)
        return made


def pays_off(platform: str) -> bool:
    """On a CPU loading needs the same cores, and how much memory there is shows afterwards."""
    return platform != "cpu"


def described_weights(config: ModelConfig, dtype: str, *, lm_head_bits: int, tiled: bool) -> dict:
    """ShapeDtypeStructs of the parameters that an engine will have.

    Args:
        lm_head_bits: see ``with_rounded_head``.
        tiled: int4 in tiles, as on a GPU.
    """

    def made(params: dict) -> dict:
        params = with_rounded_head(params, bits=lm_head_bits, tied=config.tie_word_embeddings)
        return tile_weights(params) if tiled else params

    return jax.eval_shape(made, meta.unbox(describe_parameters(config, dtype)))
