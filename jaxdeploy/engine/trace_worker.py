"""A process that traces programs for another one: ``python -m jaxdeploy.engine.trace_worker``.

Reads pickles from standard input: first a ``Task``, then names of programs until the input ends. Answers each name with a pickle on
standard output: bytes (``traced_program``), or why there are none.
"""

import os
import pickle
import sys
import traceback
from dataclasses import dataclass
from typing import Any

import jax

from jaxdeploy.engine.program_set import ProgramSet
from jaxdeploy.engine.traced_program import trace
from pallas_kernels.device import Gpu, assume_gpu


@dataclass(frozen=True)
class Task:
    """What to trace from.

    Attributes:
        settings: of JAX, by name.
        gpu: that the programs are for; None for a CPU.
        programs: on no device in particular.
    """

    settings: dict[str, Any]
    gpu: Gpu | None
    programs: ProgramSet


def main() -> None:
    """Serve one parent until it is done."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not get between the answers
    task: Task = pickle.load(sys.stdin.buffer)
    for name, value in task.settings.items():
        jax.config.update(name, value)
    if task.gpu is not None:
        assume_gpu(task.gpu)
    while True:
        try:
            name = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = trace(task.programs[name], task.programs.platform)
        except Exception:  # the parent traces it itself, and fails better
            answer = traceback.format_exc()
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
