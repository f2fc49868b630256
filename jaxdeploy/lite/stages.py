"""Time and peak memory of the stages of a run."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax


@dataclass(slots=True)
class Stage:
    """What one stage took, all its turns together.

    Attributes:
        seconds: wall time.
        host_bytes: the process's peak so far when the stage last ended.
        device_bytes: the accelerator's peak so far; None where the device does not say.
    """

    seconds: float = 0.0
    host_bytes: int = 0
    device_bytes: int | None = None


class Stages:
    """Stages by name, in the order of their first turn."""

    def __init__(self):
        self.by_name: dict[str, Stage] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Count what runs inside. Wait for the device inside, or the time goes to whoever waits next."""
        begun = time.perf_counter()
        stage = self.by_name.setdefault(name, Stage())
        try:
            yield
        finally:
            stage.seconds += time.perf_counter() - begun
            stage.host_bytes = peak_host_bytes()
            stage.device_bytes = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def peak_host_bytes() -> int:
    """The most memory that this process has had, Linux's unit of KiB turned to bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
