"""Throughput against latency, as PNG files (the extra ``plots``)."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmark_report.records import Record

_DPI = 90
_INCHES = (4.4, 3.1)
_COLORS = ("#2563eb", "#d97706", "#16a34a", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
_STYLES = {"p50": "--", "p99": "-"}


class Line(NamedTuple):
    """Points in the order of batch size or clients, which stand beside them."""

    label: str
    points: list[tuple[float, float, int]]
    style: str = "-"


class Panel(NamedTuple):
    """One pair of axes: throughput to the right, latency up."""

    x: str
    y: str
    lines: list[Line]


def engine_panels(runs: Sequence[Record]) -> list[Panel]:
    """Decode and load of the runs of one shape on one device, a line for each way to store weights and cache."""
    decode, load = [], []
    for variant in dict.fromkeys(run.variant for run in runs):
        data = [run.data for run in runs if run.variant == variant]
        points = _points([row for one in data for row in one.get("decode", ())], "decode tokens/s", "ms/step", "batch")
        decode += [Line(variant, points)] if points else []
        rows = [row for one in data for row in one.get("load", ())]
        for percentile, style in _STYLES.items():
            points = _points(rows, "tokens out/s", f"TTFT {percentile} ms", "concurrency")
            load += [Line(f"{variant}, {percentile}", points, style)] if points else []
    panels = (
        Panel("decode, tokens/s", "ms between tokens", decode),
        Panel("under load, tokens/s", "ms to first token", load),
    )
    return [panel for panel in panels if panel.lines]


def serving_panels(runs: Sequence[Record]) -> list[Panel]:
    """Time to first token and between tokens of the runs of one server."""
    panels = []
    for title, key in (("ms to first token", "ttft_ms"), ("ms between tokens", "itl_ms")):
        lines = []
        for percentile, style in _STYLES.items():
            found = sorted((r for run in runs for r in run.data["results"]), key=lambda result: result["concurrency"])
            points = [(r["tokens_per_second"], r[key][percentile], r["concurrency"]) for r in found]
            lines.append(Line(percentile, points, style))
        panels.append(Panel("tokens/s", title, lines))
    return panels


def draw(panels: Sequence[Panel], title: str, path: Path) -> Path:
    """Write the panels side by side; both axes begin at zero, numbers at the points are batch sizes or clients."""
    # The classes and not pyplot: no display, no state left behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = _INCHES
    figure = Figure(figsize=(width * len(panels), height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize="medium")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        colors: dict[str, str] = {}
        for line in panel.lines:
            name = re.sub(r",? ?p\d+$", "", line.label)
            color = colors.setdefault(name, _COLORS[len(colors) % len(_COLORS)])
            xs, ys = [x for x, *_ in line.points], [y for _, y, _ in line.points]
            axes.plot(xs, ys, f"o{line.style}", ms=4, color=color, label=line.label)
            for x, y, count in line.points:
                axes.annotate(str(count), (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7, color=color)
        axes.set(xlabel=panel.x, ylabel=panel.y)
        axes.set_xlim(0)
        axes.set_ylim(0)
        axes.grid(alpha=0.3)
        if len(panel.lines) > 1:
            axes.legend(fontsize="x-small", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    return path


def slug(text: str) -> str:
    """A file name."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")


def _points(rows: Sequence[dict[str, Any]], x: str, y: str, count: str) -> list[tuple[float, float, int]]:
    return sorted(((row[x], row[y], row[count]) for row in rows if x in row and y in row), key=lambda point: point[2])
