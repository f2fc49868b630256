"""The report's charts as PNG files, where matplotlib is installed (the extra ``plots``)."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from jaxdeploy.lite.block import LINEARS
from jaxdeploy.lite.report import LayerRecord, QuantizationReport

_INCHES, _DPI = (7.2, 2.6), 150
_COLORS = ("#2563eb", "#d97706", "#059669", "#be185d")


def write_charts(report: QuantizationReport, folder: Path) -> list[Path]:
    """Write error_by_layer.png and, if something was searched, alpha.png and clip.png.

    Returns:
        The files; none without matplotlib, for report.html has the same charts.
    """
    if find_spec("matplotlib") is None:
        return []
    layers = report.layers
    errors: dict[str, list[float | None]] = {"": [100 * record.error for record in layers]}
    written = [_draw(folder / "error_by_layer.png", errors, f"{report.model}: error of a layer's output, %")]
    for name, field, title in (
        ("alpha.png", "alphas", "chosen alpha; a gap was left unscaled"),
        ("clip.png", "shares", "share of its range that a group spans"),
    ):
        series = _series(layers, field)
        if series:
            written.append(_draw(folder / name, series, title, top=1.05))
    return written


def _series(layers: Sequence[LayerRecord], field: str) -> dict[str, list[float | None]]:
    if not any(getattr(record, field) for record in layers):
        return {}
    return {linear: [getattr(record, field).get(linear) for record in layers] for linear in LINEARS}


def _draw(path: Path, series: dict[str, list[float | None]], title: str, *, top: float | None = None) -> Path:
    # The classes and not pyplot: no display, no state left behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for color, (name, values) in zip(_COLORS, series.items(), strict=False):
        known = [(layer, value) for layer, value in enumerate(values) if value is not None]
        axes.plot([layer for layer, _ in known], [value for _, value in known], "o", ms=4, color=color, label=name)
    axes.set(title=title, xlabel="layer", xlim=(-0.5, max(map(len, series.values())) - 0.5))
    axes.set_ylim(0, top)
    axes.grid(axis="y", alpha=0.3)
    if len(series) > 1:
        axes.legend(fontsize="small", ncols=len(series), frameon=False, loc="lower center")
    figure.savefig(path)
    return path
