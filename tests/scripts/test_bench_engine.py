"""The engine benchmark runs on a tiny model and reports what it did."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
TINY = [
    "--shape",
    "tiny",
    "--weights",
    "w4a16",
    "--group-size",
    "16",
    "--concurrency",
    "2",
    "--prompt",
    "40",
    "--new",
    "8",
]


def run(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "bench_engine.py"), *TINY, "--compile-cache", str(cache), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=600, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )


def test_every_measure_reports(tmp_path):
    report = tmp_path / "report.json"
    measures = "first-token,decode,prefill,load,stall,mixed"
    options = (
        "--measure",
        measures,
        "--prefill",
        "64",
        "--requests",
        "5",
        "--quant-policy",
        "8",
        "--json",
        str(report),
    )
    done = run(*options, cache=tmp_path / "xla")
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert found["compile misses"] == 0
    (decode,), (prefill,), (load,) = found["decode"], found["prefill"], found["load"]
    assert decode["batch"] == 2
    assert 4 <= decode["steps"] <= 7
    assert decode["decode tokens/s"] > 0
    assert prefill["prompt"] == 64
    assert load["requests/s"] > 0
    assert found["stall"]["streams"] == 1
    small, large = found["mixed"]
    assert small["tokens of a mixed step"] < large["tokens of a mixed step"]
    assert small["requests/s"] == large["requests/s"] > 0
    assert all(row[f"TTFT {kind} p99 ms"] > 0 for row in (small, large) for kind in ("short", "long"))
    assert found["command"].startswith("python scripts/bench_engine.py --weights w4a16 --group-size 16")
    assert str(tmp_path) not in found["command"]
    phases = {name: seconds for name, seconds in found["first-token"].items() if name != "all"}
    assert {"import", "random weights", "plan memory", "trace steps", "compile steps", "first token"} <= phases.keys()
    assert sum(phases.values()) <= found["first-token"]["all"]


def test_an_unknown_measure_is_named(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from bench_engine import main

    assert main([*TINY, "--measure", "decode,spede"]) == 1
    assert "--measure spede must be among" in capsys.readouterr().err


@pytest.mark.parametrize("distribution", ["fixed", "random", "sharegpt"])
def test_same_seed_same_requests(monkeypatch, distribution):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from engine_bench.lengths import jobs

    first, again, other = (jobs(distribution, 50, prompt=90, new=30, vocabulary=7, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert all(1 <= len(job.prompt) <= 90 and 1 <= job.new <= 30 and set(job.prompt) <= set(range(7)) for job in first)
    lengths = {len(job.prompt) for job in first}
    assert (lengths == {90}) == (distribution == "fixed")


def test_a_part_of_a_gpus_memory_needs_a_gpu(tmp_path):
    done = run("--device-memory", "24", cache=tmp_path)
    assert done.returncode == 1
    assert "24.0 GiB of which GPU? nvidia-smi finds none" in done.stderr
