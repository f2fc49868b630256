"""The process's memory over time."""

import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path

MIB = 2**20


def resident_bytes() -> int:
    """What this process holds in memory (Linux: proc(5), second field of ``statm``)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass
class MemoryLog:
    """Samples of the resident memory.

    Attributes:
        samples: (seconds, requests that ended, MiB).
    """

    samples: list[tuple[float, int, float]] = field(default_factory=list)

    def sample(self, seconds: float, requests: int) -> float:
        """Note and return the memory now, in MiB."""
        self.samples.append((round(seconds, 1), requests, round(resident_bytes() / MIB, 1)))
        return self.samples[-1][2]

    @property
    def growth(self) -> float:
        """MiB from the median of the second fifth of the samples to that of the last fifth.

        The first fifth is left out: tables, pools and arenas fill up then. NaN where there are fewer than ten samples.
        """
        values = [mib for *_, mib in self.samples]
        fifth = len(values) // 5
        if fifth < 2:
            return float("nan")
        return statistics.median(values[-fifth:]) - statistics.median(values[fifth : 2 * fifth])
