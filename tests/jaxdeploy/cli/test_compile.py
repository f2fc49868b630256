"""``jaxdeploy compile`` fills the cache that the next start reads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny_text_model import write_text_model

from jaxdeploy.cli.main import main

OPTIONS = (
    "--max-batch-size",
    "1",
    "--session-len",
    "64",
    "--cache-block-seq-len",
    "8",
    "--max-prefill-token-num",
    "16",
)


def compile_model(model: Path, cache: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jaxdeploy", "compile", str(model), *OPTIONS, "--compile-cache", cache]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=env)


def test_the_next_start_finds_everything(tmp_path):
    model, cache = write_text_model("llama2", tmp_path / "model"), tmp_path / "xla"
    done = compile_model(model, str(cache))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(cache)
    for phase in ("imports and weights", "trace steps", "compile steps"):
        assert phase in done.stderr
    first = {file.name for file in cache.iterdir() if file.name.endswith("-cache")}
    assert len(first) > 10
    again = compile_model(model, str(cache))
    assert again.returncode == 0, again.stderr
    assert {file.name for file in cache.iterdir() if file.name.endswith("-cache")} == first, (
        "nothing was left to compile"
    )


def test_a_cache_that_is_turned_off_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["compile", str(tmp_path), "--compile-cache", ""])
    assert exit_.value.code == 2
    assert "--compile-cache is empty" in capsys.readouterr().err
