"""The benchmark of the int4 matmul from end to end on a CPU: small matrices, the reference, and a clock that stands still."""

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import bench_kernels
from kernel_bench import int4_matmul

LAYER = {"qkv": (256, 384), "out": (256, 256), "gate_up": (256, 512), "down": (256, 256)}


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    def microseconds(program, calls, *arguments):
        assert len(program(*arguments)) == calls
        return 10.0

    monkeypatch.setattr(int4_matmul, "microseconds", microseconds)
    monkeypatch.setattr(int4_matmul, "copy_bandwidth", lambda: 1000.0)
    monkeypatch.setattr(int4_matmul, "tinygemm", lambda job: {"tinygemm us": 20.0})
    monkeypatch.setattr(int4_matmul, "LLAMA_3_8B_LAYER", LAYER)
    monkeypatch.setattr(int4_matmul, "LAYERS", 2)
    monkeypatch.setattr(int4_matmul, "CALLS", 4)


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    int4_matmul.add_arguments(parser)
    return parser.parse_args(arguments)


def test_every_shape_is_checked_and_timed_beside_its_peers():
    rows = list(int4_matmul.main(parsed("--shapes", "256x64,640x96", "--tokens", "1,300", "--peers")))
    assert [(row["K x N"], row["M"]) for row in rows] == [
        ("256 x 64", 1),
        ("256 x 64", 300),
        ("640 x 96", 1),
        ("640 x 96", 300),
    ]
    for row in rows:
        assert row["ok"]
        assert 1e-4 < row["error"] < 4e-3
        assert (row["us"], row["cuBLAS bf16 us"], row["tinygemm us"]) == (10.0, 10.0, 20.0)
        assert row["TFLOP/s"] == pytest.approx(
            2 * row["M"] * np.prod([int(s) for s in row["K x N"].split(" x ")]) / 10e6
        )
    assert "WarpConfig" in rows[0]["kernel"]
    assert "WgmmaConfig" in rows[1]["kernel"]


def test_a_wrong_result_is_not_ok(monkeypatch):
    call = int4_matmul._call
    monkeypatch.setattr(int4_matmul, "_call", lambda *arguments: call(*arguments).at[0, 0].set(jnp.nan))
    [row] = int4_matmul.main(parsed("--shapes", "256x64", "--tokens", "2"))
    assert not row["ok"]


def test_a_layer_is_checked_against_float64_and_comes_first():
    rows = list(int4_matmul.main(parsed("--layer", "--shapes", "256x64", "--tokens", "1,5")))
    assert [row["K x N"] for row in rows] == ["Llama-3-8B layer"] * 2 + ["256 x 64"] * 2
    for row in rows[:2]:
        assert row["ok"], row
        assert 1e-4 < row["error"] < int4_matmul.LAYER_TOLERANCE
        assert row["wall us"] > 0


def test_the_gated_form_of_the_wide_matrix(monkeypatch):
    monkeypatch.setattr(int4_matmul, "ANCHORS", ((128, 28672),))
    rows = list(int4_matmul.main(parsed("--gated", "--tokens", "2")))
    assert [row["K x N"] for row in rows] == ["128 x 28672", "128 x 28672 gated"]
    assert all(row["ok"] for row in rows)


def test_the_cost_of_batch_invariance():
    rows = list(int4_matmul.main(parsed("--shapes", "256x64", "--tokens", "1,3", "--invariant")))
    assert [row["cost %"] for row in rows] == [0.0, 0.0]
    assert rows[1]["same bits"], "it is the whole batch"
    assert all(row["ok"] == row["same bits"] for row in rows)


def test_bits_are_compared_with_the_first_rows_of_the_batch():
    whole = jnp.arange(8, dtype=jnp.bfloat16).reshape(4, 2)
    assert int4_matmul.same_bits(whole[:2], whole)
    assert not int4_matmul.same_bits(whole[:2] + 1, whole)


def test_the_numbers_are_written_row_by_row(tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.json"

    def interrupted(options):
        yield int4_matmul.Row({"M": 1})
        yield int4_matmul.Row({"M": 2})
        assert [row["M"] for row in json.loads(path.read_text())["rows"]] == [1, 2]
        raise KeyboardInterrupt

    monkeypatch.setattr(int4_matmul, "main", interrupted)
    monkeypatch.setattr(sys, "argv", ["bench_kernels.py", "int4_matmul", "--json", str(path)])
    devices = [SimpleNamespace(device_kind="a GPU")]
    monkeypatch.setattr(bench_kernels, "jax", SimpleNamespace(default_backend=lambda: "gpu", devices=lambda: devices))
    with pytest.raises(KeyboardInterrupt):
        bench_kernels.main()
    written = json.loads(path.read_text())
    assert (written["device"], written["command"]) == ("a GPU", f"python bench_kernels.py int4_matmul --json {path}")
