"""Traces programs in processes of their own: tracing is Python, so threads would take turns, and it is most of a first start."""

import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any

import jax

import jaxdeploy
from jaxdeploy.engine import traced_program
from jaxdeploy.engine.program_set import ProgramName, ProgramSet
from jaxdeploy.engine.trace_worker import Task
from pallas_kernels.device import current_gpu

_log = logging.getLogger(__name__)
LEAST_CORES, MOST_WORKERS = 8, 12
"""With fewer cores, importing JAX in every process costs what they save. A first start has about 30 programs."""
LEAST_PROGRAMS = 4
"""Fewer are traced while the processes would still be importing."""
SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
)
"""Of JAX: those that what is traced depends on."""


class Tracers:
    """A context with processes that trace; they need seconds to be ready, so ``start`` them early.

    Whatever goes wrong in one of them is logged, and the program is traced here.

    Args:
        count: of processes; 0 traces everything here.
    """

    def __init__(self, count: int):
        self.count = count
        self._workers: list[subprocess.Popen] = []

    @classmethod
    def for_platform(cls, platform: str) -> "Tracers":
        """As many as pay off: none for a CPU, where programs are quickly traced and compiling needs the cores."""
        cores = os.cpu_count() or 1
        return cls(min(MOST_WORKERS, cores - 2) if platform == "gpu" and cores >= LEAST_CORES else 0)

    def start(self) -> None:
        """Start the processes, if they have not been."""
        if self._workers or not sys.executable:  # none where Python is part of another program
            return
        path = [str(Path(jaxdeploy.__path__[0]).parent), os.environ.get("PYTHONPATH", "")]
        environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, path))}
        command = [sys.executable, "-m", "jaxdeploy.engine.trace_worker"]
        try:
            for _ in range(self.count):
                # In a session of its own: a Ctrl-C is this process's matter, which ends them.
                worker = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
                )
                self._workers.append(worker)
        except OSError as error:
            _log.warning("programs are traced one after another: %s", error)

    def __enter__(self) -> "Tracers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.communicate()
        self._workers = []

    def lower(self, programs: ProgramSet, names: list[ProgramName]) -> Iterator[tuple[ProgramName, jax.stages.Lowered]]:
        """Each named program, lowered, as it becomes ready; processes are started for several only."""
        if len(names) >= LEAST_PROGRAMS:
            self.start()
        if not self._workers or not names:
            for name in names:
                yield name, programs[name].lower()
            return
        gpu = current_gpu() if programs.platform == "gpu" else None
        settings = {name: jax.config.values[name] for name in SETTINGS if name in jax.config.values}
        task = pickle.dumps(Task(settings, gpu, programs.placed(None)))
        waiting: SimpleQueue[ProgramName] = SimpleQueue()
        for name in names:
            waiting.put(name)
        ready: SimpleQueue[tuple[ProgramName, jax.stages.Lowered] | None] = SimpleQueue()
        missing = dict.fromkeys(names)
        with ThreadPoolExecutor(len(self._workers)) as threads:
            for worker in self._workers:
                threads.submit(_serve, worker, task, programs, waiting, ready)
            try:
                working = len(self._workers)
                while working:
                    found = ready.get()
                    if found is None:
                        working -= 1
                        continue
                    del missing[found[0]]
                    yield found
            finally:
                while _taken(waiting) is not None:
                    pass
        for name in missing:
            yield name, programs[name].lower()


def _serve(
    worker: subprocess.Popen,
    task: bytes,
    programs: ProgramSet,
    waiting: "SimpleQueue[ProgramName]",
    ready: "SimpleQueue[tuple[ProgramName, jax.stages.Lowered] | None]",
) -> None:
    """Have a process trace what waits, until nothing does or something went wrong; then put None."""
    asked: Any = worker.stdin
    answers: Any = worker.stdout
    try:
        asked.write(task)
        while (name := _taken(waiting)) is not None:
            pickle.dump(name, asked)
            asked.flush()
            answer = pickle.load(answers)
            if isinstance(answer, str):
                raise RuntimeError(answer)
            ready.put((name, traced_program.lower(programs[name], answer)))
    except Exception as error:
        _log.warning("a process that traces programs failed, this one goes on without it: %r", error)
    finally:
        ready.put(None)


def _taken(waiting: "SimpleQueue[ProgramName]") -> ProgramName | None:
    try:
        return waiting.get_nowait()
    except Empty:
        return None
