"""Times of kernels on a GPU, and the ceiling to hold them against."""

from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.mosaic.gpu import profiler


def kernel_times(function: Callable | jax.stages.Compiled, *arguments: Any) -> list[tuple[str, float]]:
    """Name and microseconds of every kernel of one run, as CUPTI saw it, after a run to warm up.

    Raises:
        RuntimeError: CUPTI saw none.
    """
    measured: Any = profiler.Cupti(finalize=False).measure(function, aggregate=False)
    _, times = measured(*arguments)
    if not times:
        raise RuntimeError("CUPTI saw no kernel: does another profiler hold it, or may only root read its counters?")
    return [(name, milliseconds * 1e3) for name, milliseconds in times]


def microseconds(function: Callable | jax.stages.Compiled, calls: int, *arguments: Any, runs: int = 3) -> float:
    """Median over ``runs`` of the time of all kernels, for one of the ``calls`` that ``function`` makes."""
    return median(sum(time for _, time in kernel_times(function, *arguments)) / calls for _ in range(runs))


def copy_bandwidth() -> float:
    """GB/s, read plus written, of ``x + 1`` over 2 GB: what a kernel that only moves bytes reaches here."""
    x = jnp.ones(1 << 29, jnp.float32)
    return 2 * x.nbytes / microseconds(jax.jit(lambda x: x + 1), 1, x) / 1e3
