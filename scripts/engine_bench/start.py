"""Time from the start of the process to the first token, by phase."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def process_age() -> float:
    """Seconds since this process was started, its interpreter's start included (Linux: proc(5), field 22 of ``stat``)."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def cold_and_warm(script: Path, arguments: list[str]) -> tuple[str, list[dict[str, float]]]:
    """Start the engine in two fresh processes, the first with an empty compile cache, the second with what that left.

    Args:
        script: ``bench_engine.py``. arguments: of its command line, what to build.

    Returns:
        The device, and a row for each process.
    """
    rows, device = [], ""
    with tempfile.TemporaryDirectory() as scratch:
        for start in ("cold", "warm"):
            report = Path(scratch) / f"{start}.json"
            command = [sys.executable, str(script), *arguments, "--measure", "first-token"]
            command += ["--compile-cache", str(Path(scratch) / "xla"), "--json", str(report)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            told = json.loads(report.read_text())
            rows.append({"start": start, **told["first-token"]})
            device = told["device"]
    return device, rows
