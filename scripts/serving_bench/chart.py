"""The results as an SVG picture, drawn without a library."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT = 320, 220
MARGIN = 48
COLOURS = ("#2563eb", "#d97706", "#dc2626")
PANELS = (
    ("tokens/s", (("tokens/s", ("tokens_per_second",)),)),
    ("time to first token, ms", tuple((p, ("ttft_ms", p)) for p in ("p50", "p95", "p99"))),
    ("between tokens, ms", tuple((p, ("itl_ms", p)) for p in ("p50", "p95", "p99"))),
)
"""Title of each panel, and its lines: a label and where its value lies in a result."""


def chart(results: Sequence[dict[str, Any]], title: str) -> str:
    """An SVG with a panel each for throughput, TTFT and ITL, over the number of clients."""
    panels = "".join(
        f'<g transform="translate({i * WIDTH},28)">{_panel(results, *panel)}</g>' for i, panel in enumerate(PANELS)
    )
    width, height = WIDTH * len(PANELS), HEIGHT + 28
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="{MARGIN}" y="18" font-size="13">{escape(title)}</text>{panels}</svg>\n'
    )


def _panel(results: Sequence[dict[str, Any]], title: str, lines: Sequence[tuple[str, Sequence[str]]]) -> str:
    values = [[_value(result, path) for result in results] for _, path in lines]
    top = _round_up(max(map(max, values)))
    right, bottom = WIDTH - 16, HEIGHT - 32
    step = (right - MARGIN) / max(len(results) - 1, 1)
    xs = [MARGIN + i * step for i in range(len(results))]

    def y(value: float) -> float:
        return bottom - (bottom - 24) * value / top

    parts = [f'<text x="{MARGIN}" y="12">{escape(title)}</text>']
    for share in (0, 0.5, 1):
        at = y(share * top)
        parts.append(f'<path d="M{MARGIN} {at:.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{MARGIN - 4}" y="{at + 4:.1f}" text-anchor="end">{share * top:g}</text>')
    for x, result in zip(xs, results, strict=True):
        parts.append(f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{result["concurrency"]}</text>')
    parts.append(f'<text x="{(MARGIN + right) / 2}" y="{bottom + 28}" text-anchor="middle">clients</text>')
    for i, ((label, _), row) in enumerate(zip(lines, values, strict=True)):
        colour, points = COLOURS[i], [f"{x:.1f},{y(value):.1f}" for x, value in zip(xs, row, strict=True)]
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="3" fill="{colour}"/>' for p in points]
        if len(lines) > 1:
            parts.append(f'<text x="{right - 30 * (len(lines) - i) + 8}" y="12" fill="{colour}">{label}</text>')
    return "".join(parts)


def _value(result: dict[str, Any], path: Sequence[str]) -> float:
    value: Any = result
    for key in path:
        value = value[key]
    return value


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, .. that is no smaller."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value)
