"""The quantization benchmark on its tiny shape."""

import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_a_line_per_method_with_time_by_stage(tmp_path: Path):
    command = [sys.executable, "scripts/bench_quantize.py", "--shape", "tiny", "--method", "fixed:1", "--samples", "2"]
    command += ["--seqlen", "16", "--group-size", "16", "--json", str(tmp_path / "found.jsonl")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert "layers 1/1 after" in done.stdout, done.stderr
    (found,) = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert (found["shape"], found["method"], found["layers"], found["tokens"]) == ("tiny", "fixed", 1, [2, 16])
    assert {"statistics", "scales", "rounding", "forward", "write"} <= found["stages"].keys()
    assert 0 < sum(found["stages"].values()) <= found["seconds"] + 1
    assert len(found["errors"]) == 1
    assert 0 < found["errors"][0] < 0.2
