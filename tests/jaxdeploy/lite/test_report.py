"""The report as text and as a page."""

import xml.etree.ElementTree as ET
from dataclasses import replace

from jaxdeploy.lite.report import LayerRecord, QuantizationReport, StageRecord, report_lines
from jaxdeploy.lite.report_html import render_html

REPORT = QuantizationReport(
    model="tiny <model>",
    work_dir="out",
    settings={"group_size": 64},
    origin="text.txt",
    samples=16,
    sample_tokens=256,
    held_out=4,
    loss_before=2.0,
    loss_after=2.1,
    bytes_before=3 * 2**30,
    bytes_after=2**30,
    device="cpu",
    seconds=12.3,
    layers=(
        LayerRecord(0, 0.01, 1.0, {"attention.qkv": 0.25, "mlp.down": None}, {"attention.qkv": 0.9, "mlp.down": 0.8}),
        LayerRecord(1, 0.03, 1.0, {"attention.qkv": 0.5, "mlp.down": 0.0}, {"attention.qkv": 0.95, "mlp.down": 0.7}),
    ),
    stages=(StageRecord("scales", 5.25, 2**30, None), StageRecord("rounding", 1.0, 2**30, 5 * 2**20)),
)


def test_the_table_has_before_and_after():
    text = "\n".join(report_lines(REPORT))
    rows = [line.split() for line in report_lines(REPORT)]
    assert ["perplexity", "7.389", "8.166", "on", "4", "x", "256", "held-out", "tokens"] in rows
    assert ["size", "3.00", "GiB", "1.00", "GiB", "3.00", "times", "smaller"] in rows
    assert ["rounding", "1.0", "1.00", "GiB", "5.0", "MiB"] in rows
    assert "1 (3.00%), 0 (1.00%)" in text


def test_without_held_out_text():
    text = "\n".join(report_lines(replace(REPORT, held_out=0, loss_before=None, loss_after=None)))
    assert "no held-out text" in text


def test_the_page_is_whole_and_needs_nothing_else():
    page = render_html(REPORT)
    root = ET.fromstring(
        page.replace("<!doctype html>", "")
        .replace('<meta charset="utf-8">', "")
        .replace('<meta name="viewport" content="width=device-width">', "")
    )
    charts = root.findall(".//svg")
    assert len(charts) == 3
    assert [len(chart.findall("circle")) for chart in charts] == [2, 3, 4], "a dot per layer and module, None is a gap"
    assert "tiny &lt;model&gt;" in page
    for outside in ("http://", "https://", "src=", "@import"):
        assert outside not in page


def test_charts_of_what_was_not_done_are_left_out():
    bare = replace(REPORT, layers=tuple(replace(record, alphas={}, shares={}) for record in REPORT.layers))
    assert render_html(bare).count("<svg") == 1
