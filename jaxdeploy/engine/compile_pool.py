"""Compiles programs in parallel, as many at a time as the device has room for.

XLA tries matmuls out on the GPU while it compiles, each compilation with arrays of its own: 16 at once tried the output matrix of
an 8B model (1.05 GB) in a GPU of 24 GiB beside 5.8 GB of weights, and ran out of memory.
"""

import os
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp

from jaxdeploy.weights.packing_together import out_of_memory

MOST_THREADS = min(16, os.cpu_count() or 4)
TRIED_COPIES = 2
"""Of the largest matrix that one compilation may need: the matrix, and its results by several kernels."""


def threads_that_fit(weights: dict, free_bytes: int) -> int:
    """Compilations at a time while ``free_bytes`` of the device are free: 1 to MOST_THREADS.

    Args:
        weights: arrays or their shapes; those of "layers" are stacks of matrices. Integers are our kernels', not tried out.
    """

    def largest(tree: Any, stacked: bool) -> int:
        sizes = [
            leaf.size // (leaf.shape[0] if stacked else 1) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
            if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim > 1
        ]
        return max(sizes, default=0)

    rest = {name: tree for name, tree in weights.items() if name != "layers"}
    matrix = max(largest(rest, stacked=False), largest(weights.get("layers", {}), stacked=True), 1)
    return max(1, min(MOST_THREADS, free_bytes // (TRIED_COPIES * matrix)))


class CompilePool:
    """Threads that compile; a program for which the others left too little memory is compiled again, alone.

    Args:
        compile: takes what was submitted after the name.
        threads: at most.
    """

    def __init__(self, compile: Callable[..., Any], threads: int = MOST_THREADS):
        self._compile = compile
        self._pool = ThreadPoolExecutor(threads)
        self._jobs: dict[Future, tuple[Hashable, tuple]] = {}

    def __enter__(self) -> "CompilePool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def submit(self, name: Any, *arguments: Any) -> None:
        """Begin with a program as soon as a thread is free."""
        self._jobs[self._pool.submit(self._compile, *arguments)] = name, arguments

    def results(self) -> Iterator[tuple[Any, Any]]:
        """Names and what was compiled, in the order in which it is ready."""
        crowded = []
        for job in as_completed(self._jobs):
            name, arguments = self._jobs[job]
            try:
                compiled = job.result()
            except jax.errors.JaxRuntimeError as error:
                if not out_of_memory(error):
                    raise
                crowded.append((name, arguments))
                continue
            yield name, compiled
        for name, arguments in crowded:
            yield name, self._compile(*arguments)
