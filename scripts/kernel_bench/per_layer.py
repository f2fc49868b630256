"""Times of the kernels of one layer, and their plot over tokens."""

import re
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
from kernel_bench.report import Row

from pallas_kernels.implementation import IMPLEMENTATIONS
from pallas_kernels.timing import kernel_times

RUNS = 3


def layer_times(walk: Callable, layers: int, *arguments: Any) -> dict[str, float]:
    """Microseconds of a layer by kernel, median of RUNS; kernels that run less than once a layer are left out.

    Args:
        walk: runs ``layers`` layers on the arguments.
    """
    runs: list[dict[str, float]] = []
    for _ in range(RUNS):
        times: dict[str, list[float]] = defaultdict(list)
        for kernel, us in kernel_times(walk, *arguments):
            times[re.sub(r"(_\d+)+$", "", kernel)].append(us)  # XLA numbers equal kernels of different layers
        runs.append({kernel: sum(us) / layers for kernel, us in times.items() if len(us) >= layers})
    return {kernel: median(run[kernel] for run in runs) for kernel in runs[0]}


def plot_over_tokens(rows: list[Row], path: str, *, title: str, label: Callable[[Row], str]) -> None:
    """Plot microseconds of each implementation over tokens, a pair of lines for each ``label``."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for kind in dict.fromkeys(map(label, rows)):
        for name, style in zip(IMPLEMENTATIONS, ("-", "--"), strict=True):
            points = [(row["tokens"], row[f"{name} us"]) for row in rows if label(row) == kind]
            axes.loglog(*zip(*points, strict=True), style, marker="o", label=f"{kind}, {name}")
    axes.set(xlabel="tokens", ylabel="us", title=f"{title}, {jax.devices()[0].device_kind}, jax {jax.__version__}")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120, bbox_inches="tight")
