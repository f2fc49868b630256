"""PNG charts, where matplotlib is installed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.image import imread

from jaxdeploy.lite import report_charts
from jaxdeploy.lite.report import LayerRecord, QuantizationReport
from jaxdeploy.lite.report_charts import write_charts

LAYERS = (
    LayerRecord(0, 0.01, 1.0, {"attention.qkv": 0.25, "mlp.down": None}, {"attention.qkv": 0.9, "mlp.down": 0.8}),
    LayerRecord(1, 0.03, 1.0, {"attention.qkv": 0.5, "mlp.down": 0.0}, {"attention.qkv": 0.95, "mlp.down": 0.7}),
)
REPORT = QuantizationReport(
    model="tiny", work_dir="out", settings={}, origin="text.txt", samples=1, sample_tokens=2, held_out=0, loss_before=None,
    loss_after=None, bytes_before=2, bytes_after=1, device="cpu", seconds=1.0, layers=LAYERS, stages=(),
)  # fmt: skip


def blue_dots(path: Path) -> int:
    """Pixels of the first series' color."""
    color = np.array([0x25, 0x63, 0xEB]) / 255
    return int((np.abs(imread(path)[..., :3] - color) < 0.02).all(axis=-1).sum())


def test_a_file_for_each_thing_that_was_searched(tmp_path: Path):
    files = write_charts(REPORT, tmp_path)
    assert [file.name for file in files] == ["error_by_layer.png", "alpha.png", "clip.png"]
    for file in files:
        assert imread(file).shape[1] == 1080
        assert blue_dots(file) > 50, "the first module's points"
    bare = replace(REPORT, layers=tuple(replace(record, alphas={}, shares={}) for record in LAYERS))
    (tmp_path / "bare").mkdir()
    assert [file.name for file in write_charts(bare, tmp_path / "bare")] == ["error_by_layer.png"]


def test_without_matplotlib_there_are_none(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(report_charts, "find_spec", lambda name: None)
    assert write_charts(REPORT, tmp_path) == []
    assert list(tmp_path.iterdir()) == []
