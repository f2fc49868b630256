"""The quantization benchmark on its tiny shape."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from bench_quantize import OutOfTimeError, RepeatedLayer, Watch

REPOSITORY = Path(__file__).parents[2]


def test_a_line_per_layer_and_method_with_time_by_stage(tmp_path: Path):
    command = [sys.executable, "scripts/bench_quantize.py", "--shape", "tiny", "--method", "fixed:3", "--samples", "2"]
    command += ["--seqlen", "16", "--group-size", "16", "--json", str(tmp_path / "found.jsonl")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    *layers, found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["layer"]) for line in layers] == [("layer", 0), ("layer", 1), ("layer", 2)]
    assert layers[0]["compilations"] == layers[2]["compilations"], "layers share all programs"
    assert (found["kind"], found["shape"], found["method"], found["layers"]) == ("method", "tiny", "fixed", 3)
    assert (found["tokens"], found["layers_done"], found["computed"]) == ([2, 16], 3, None)
    assert {"statistics", "scales", "rounding", "forward", "write"} <= found["stages"].keys()
    assert 0 < sum(found["stages"].values()) <= found["whole_model_seconds"] + 1
    assert len(found["errors"]) == 3
    assert 0 < found["errors"][0] < 0.2


def test_it_stops_before_a_layer_that_does_not_fit_and_says_what_is_computed(tmp_path: Path):
    watch = Watch({"method": "awq"}, tmp_path / "found.jsonl", time.time() - 1)
    stages = {"scales": SimpleNamespace(seconds=3.0, host_bytes=5)}
    with pytest.raises(OutOfTimeError):
        watch(SimpleNamespace(layer=0, error=0.1), stages)
    (line,) = [json.loads(text) for text in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert (line["method"], line["layer"], line["stages"]) == ("awq", 0, {"scales": 3.0})
    assert watch.computed(32) is None, "a layer that compiled says nothing about the others"
    watch.layers = [50.0, 3.0, 2.0, 9.0]
    computed = watch.computed(32)
    assert computed is not None
    assert computed["seconds"] == 50 + 31 * 3
    assert computed["of"].startswith("layer 0 with all before it (50.0 s) + 31 x the median of layers 1 to 3 (3.00 s)")


def test_one_layer_stands_for_all():
    tensors = {"model.embed.weight": np.zeros(2), "model.layers.0.mlp.weight": np.ones(3)}
    source = SimpleNamespace(names=lambda: list(tensors), info=tensors.get, read=tensors.get)
    repeated = RepeatedLayer(source, 2)
    assert repeated.names() == ["model.embed.weight", "model.layers.0.mlp.weight", "model.layers.1.mlp.weight"]
    assert repeated.read("model.layers.1.mlp.weight") is tensors["model.layers.0.mlp.weight"]
    assert repeated.read("model.embed.weight") is tensors["model.embed.weight"]
