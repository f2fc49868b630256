"""A sweep over the ways to cut a kernel's work, as every kernel's ``tuning.py`` can have it: resumable, within a budget.

Shapes come in order of importance. While one is timed the next are compiled. The table is written after every shape, and a shape
that it holds is skipped, so that a run that was cut off, or whose time was over, goes on where it stopped.
"""

import argparse
import contextlib
import json
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

AHEAD = 3
"""Shapes that are compiled while one is timed."""
HANG_SECONDS = 60
"""A candidate that takes longer than this never ends; the process does, then, and the table keeps what was found before."""

MOST_FAILURES = 3
"""Shapes in a row of which no candidate ran."""


@runtime_checkable
class Tuning(Protocol):
    """What a kernel's ``tuning.py`` has for it."""

    def table_path(self) -> Path:
        """Of this GPU."""
        ...

    def shapes(self, options: argparse.Namespace) -> list[Any]:
        """In order of importance, each once."""
        ...

    def key(self, shape: Any) -> tuple:
        """What identifies a shape; the order of the table."""
        ...

    def key_of(self, entry: dict[str, Any]) -> tuple:
        """The key of the shape of an entry."""
        ...

    def entry(self, shape: Any, config: Any, us: float) -> dict[str, Any]:
        """A line of the table."""
        ...

    def candidates(self, shape: Any) -> list[Any]:
        """What is worth a measurement, the rules' own choice first."""
        ...

    def compiled(self, shape: Any, config: Any) -> Any:
        """A program that times one candidate. Called from several threads; launches nothing."""
        ...

    def timer(self, shape: Any) -> Callable[[Any], float]:
        """Microseconds of a program. Raises ArithmeticError for one whose result is wrong."""
        ...


@dataclass(frozen=True, slots=True)
class Best:
    """The fastest candidate of a shape, of how many that ran."""

    shape: Any
    config: Any
    us: float
    ran: int


def missing(tuning: Tuning, shapes: list[Any], table: dict[str, Any], *, again: bool) -> list[Any]:
    """Shapes that the table doesn't hold; all of them if ``again``."""
    held = set() if again else {tuning.key_of(entry) for entry in table.get("entries", [])}
    return [shape for shape in shapes if tuning.key(shape) not in held]


def sweep(tuning: Tuning, shapes: list[Any], *, in_time: Callable[[], bool]) -> Iterator[Best | None]:
    """Time the candidates of one shape after the other; None for a shape of which none ran.

    Ends when ``in_time`` says no; a shape that isn't through by then is left out.
    """
    pool = ThreadPoolExecutor(max(2, (os.cpu_count() or 2) - 1))
    upcoming = iter(shapes)
    under_way: deque[tuple[Any, list[tuple[Any, Future]]]] = deque()

    def compile_next() -> None:
        for shape in upcoming:
            configs = tuning.candidates(shape)
            under_way.append((shape, [(config, pool.submit(tuning.compiled, shape, config)) for config in configs]))
            return

    try:
        for _ in range(AHEAD):
            compile_next()
        while under_way and in_time():
            shape, programs = under_way.popleft()
            compile_next()
            timed = _timed(tuning, shape, programs, in_time)
            if timed is None:
                return
            best = min(timed, key=lambda pair: pair[1], default=None)
            yield None if best is None else Best(shape, *best, len(timed))
    finally:
        pool.shutdown(cancel_futures=True)


def _timed(
    tuning: Tuning, shape: Any, programs: list[tuple[Any, Future]], in_time: Callable[[], bool]
) -> list[tuple[Any, float]] | None:
    """Candidates and their microseconds; None if the time was over before the last."""
    timer, found = None, []
    for config, program in programs:
        if not in_time():
            return None
        try:
            run = program.result()
            timer = timer or tuning.timer(shape)
            with _watched(f"{shape} {config}"):
                found.append((config, timer(run)))
        except Exception as error:  # a candidate that ptxas refuses, or that is wrong, is none; say so and go on
            print(f"{shape} {config}: {type(error).__name__}: {str(error)[:500]}", file=sys.stderr)
    return found


@contextlib.contextmanager
def _watched(what: str) -> Iterator[None]:
    """End the process if this takes HANG_SECONDS: no other way leads out of a kernel that waits forever."""

    def give_up() -> None:
        print(f"{what} did not end within {HANG_SECONDS} s", file=sys.stderr, flush=True)
        os._exit(3)

    watch = threading.Timer(HANG_SECONDS, give_up)
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


def merged(tuning: Tuning, table: dict[str, Any], entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """New entries in place of those of the same shape; ordered by shape."""
    found = {tuning.key_of(e): e for e in [*table.get("entries", []), *entries]}
    return [found[key] for key in sorted(found)]


def write(path: Path, table: dict[str, Any]) -> None:
    """In one step: a run that is cut off leaves the table of before or after."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    new.replace(path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that every sweep has."""
    parser.add_argument("--seconds", type=float, help="stop after so many, and keep what was found")
    parser.add_argument("--again", action="store_true", help="also shapes that the table holds")
    parser.add_argument("--out", type=Path, help="the table; default that of this GPU in the kernel's folder")


def sweep_and_write(tuning: Tuning, options: argparse.Namespace) -> int:
    """Sweep as the command line says; returns the exit status."""
    if jax.default_backend() != "gpu":
        print(f"tuning needs an NVIDIA GPU; jax sees {jax.devices()}", file=sys.stderr)
        return 2
    begun = time.monotonic()
    try:
        shapes = tuning.shapes(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    path = options.out or tuning.table_path()
    table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    todo = missing(tuning, shapes, table, again=options.again)
    print(f"{len(todo)} of {len(shapes)} shapes to tune, table {path}", flush=True)
    return run(tuning, todo, table, path, in_time=lambda: time.monotonic() - begun < (options.seconds or math.inf))


def run(tuning: Tuning, todo: list[Any], table: dict[str, Any], path: Path, *, in_time: Callable[[], bool]) -> int:
    """Tune these shapes; returns the exit status: 0 if all of them are in the table now, 3 if the time was over before."""
    from rich.progress import Progress

    about = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    done = failed = 0
    with Progress() as progress:
        task = progress.add_task("tuning", total=len(todo))
        for best in sweep(tuning, todo, in_time=in_time):
            done += 1
            progress.advance(task)
            failed = failed + 1 if best is None else 0
            if failed == MOST_FAILURES:
                print(f"{failed} shapes in a row without a result: the GPU no longer works", file=sys.stderr)
                return 1
            if best is None:
                continue
            progress.console.print(
                f"{best.shape}: {best.config} {best.us:.2f} us, of {best.ran}", highlight=False, soft_wrap=True
            )
            entry = tuning.entry(best.shape, best.config, best.us)
            table = {**table, **about, "entries": merged(tuning, table, [entry])}
            write(path, table)
    if done < len(todo):
        print(f"time is over: {len(todo) - done} shapes are left; run again to go on")
        return 3
    return 0
