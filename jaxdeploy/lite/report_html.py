"""report.html: one file with everything in it, charts as inline SVG."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from jaxdeploy.lite.block import LINEARS
from jaxdeploy.lite.report import LayerRecord, QuantizationReport, format_perplexity, format_size

_WIDTH, _HEIGHT = 720, 180
_LEFT, _BOTTOM, _TOP = 56, 24, 10
_COLORS = ("#2563eb", "#d97706", "#059669", "#be185d")
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:780px;margin:2em auto;padding:0 1em;color:#1f2937;background:#fff}
h1{font-size:1.4em} h2{font-size:1.1em;margin-top:2em} table{border-collapse:collapse}
td,th{padding:.2em 1em .2em 0;text-align:right}
td:first-child,th:first-child{text-align:left} th{font-weight:600;border-bottom:1px solid #d1d5db} svg{max-width:100%;height:auto}
text{font:11px system-ui,sans-serif;fill:#4b5563} .axis{stroke:#d1d5db} .legend span{margin-right:1em}
@media(prefers-color-scheme:dark){body{background:#111827;color:#e5e7eb}text{fill:#9ca3af}th,.axis{border-color:#4b5563;stroke:#4b5563}}
"""


def write_html(report: QuantizationReport, path: Path) -> None:
    """Write the report."""
    path.write_text(render_html(report), encoding="utf-8")


def render_html(report: QuantizationReport) -> str:
    """The page."""
    summary = [
        ("", "before", "after"),
        ("perplexity (held out)", format_perplexity(report.loss_before), format_perplexity(report.loss_after)),
        ("size of the weights", format_size(report.bytes_before), format_size(report.bytes_after)),
    ]
    stages = [("stage", "seconds", "peak host memory", "peak device memory")]
    stages += [
        (stage.name, f"{stage.seconds:.1f}", format_size(stage.host_bytes), format_size(stage.device_bytes))
        for stage in report.stages
    ]
    worst = [("layer", "error", "seconds")]
    worst += [(str(r.layer), f"{r.error:.3%}", f"{r.seconds:.1f}") for r in report.worst_layers(5)]
    settings = [("setting", "value"), *((key, str(value)) for key, value in report.settings.items())]
    errors = [("", [100 * record.error for record in report.layers])]
    calibrated = (
        f"Calibrated on {report.samples} samples of {report.sample_tokens} tokens of {escape(report.origin)}; "
        f"{report.seconds:.0f} s on {escape(report.device)}."
    )
    parts = [
        f"<h1>{escape(report.model)} in int4</h1>",
        f"<p>{calibrated}</p>",
        _table(summary),
        "<h2>Error by layer</h2><p>Squared error of a layer's output, as a percentage of what the layer adds to its input.</p>",
        _chart(errors, unit="%"),
        _table(worst),
    ]
    alphas = _series(report.layers, "alphas")
    if alphas:
        text = "Exponent of the input channels' scales: 0 follows the weights alone, 1 the activations; a gap was left unscaled."
        parts += ["<h2>Chosen alpha</h2>", f"<p>{text}</p>", _chart(alphas, top=1.0)]
    shares = _series(report.layers, "shares")
    if shares:
        text = "Mean share of its min-max range that a group spans after the clip search."
        parts += ["<h2>Clipping</h2>", f"<p>{text}</p>", _chart(shares, top=1.0)]
    parts += ["<h2>Time and memory</h2>", _table(stages), "<h2>Settings</h2>", _table(settings)]
    body = "\n".join(parts)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(report.model)} in int4</title><style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _series(layers: Sequence[LayerRecord], field: str) -> list[tuple[str, list[float | None]]]:
    if not any(getattr(record, field) for record in layers):
        return []
    return [(linear, [getattr(record, field).get(linear) for record in layers]) for linear in LINEARS]


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f"<table><tr>{head}</tr>{body}</table>"


def _chart(series: Sequence[tuple[str, Sequence[float | None]]], *, top: float | None = None, unit: str = "") -> str:
    """Dots over layers, a color per series; None is a gap."""
    values = [value for _, line in series for value in line if value is not None]
    highest = top or max([*values, 1e-12])
    count = max(len(line) for _, line in series)
    across, up = _WIDTH - _LEFT - 10, _HEIGHT - _TOP - _BOTTOM

    def place(layer: int, value: float) -> tuple[float, float]:
        return _LEFT + across * (layer + 0.5) / count, _TOP + up * (1 - value / highest)

    marks = []
    for share in (0.0, 0.5, 1.0):
        y = _TOP + up * (1 - share)
        marks.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{highest * share:.3g}{unit}</text>')
    marks += [
        f'<text x="{place(layer, 0)[0]:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{layer}</text>'
        for layer in range(0, count, max(1, count // 8))
    ]
    for color, (name, line) in zip(_COLORS, series, strict=False):
        for layer, value in enumerate(line):
            if value is not None:
                x, y = place(layer, value)
                title = escape(f"{name} layer {layer}: {value:.4g}{unit}".strip())
                marks.append(
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"><title>{title}</title></circle>'
                )
    legend = ""
    if len(series) > 1:
        names = "".join(
            f'<span style="color:{color}">&#9679; {escape(name)}</span>'
            for color, (name, _) in zip(_COLORS, series, strict=False)
        )
        legend = f'<p class="legend">{names}</p>'
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(marks)}</svg>{legend}'
