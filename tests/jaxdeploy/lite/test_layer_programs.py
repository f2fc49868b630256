"""What is compiled before the first layer is what the layers run."""

import logging
import re
from pathlib import Path

import jax
from support.tiny_text_model import TEXT, write_text_model

from jaxdeploy import runtime
from jaxdeploy.lite import quantize
from jaxdeploy.lite.layer_programs import compile_layer, layer_calls
from jaxdeploy.lite.recipe import Calibration, Recipe


def test_layers_find_their_programs_compiled(tmp_path: Path, caplog, monkeypatch):
    source = write_text_model("llama3", tmp_path / "source")
    (tmp_path / "text.txt").write_text(TEXT)
    recipe = Recipe(group_size=16, alphas=3, rounding="gptq")
    options = Calibration(dataset=str(tmp_path / "text.txt"), samples=8, seqlen=24, batch_size=4, eval_samples=4)
    ahead: set[str] = set()

    def compile_then_listen(*arguments):
        compile_layer(*arguments)
        ahead.update(call.program.__name__ for call in layer_calls(*arguments))
        caplog.clear()

    monkeypatch.setattr(quantize, "compiles_ahead", lambda: True)
    monkeypatch.setattr(quantize, "compile_layer", compile_then_listen)
    jax.clear_caches()
    counts: list[int] = []
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        report = quantize.quantize_model(
            source, tmp_path / "out", recipe, options, progress=lambda *_: counts.append(runtime.compilations())
        )
    assert counts[0] == counts[1], "compile time must not grow with depth"
    late = set(re.findall(r"Finished XLA compilation of jit\((\w+)\)", caplog.text))
    assert "token_losses" in late, "the log says what is compiled"
    assert len(ahead) >= 9
    assert ahead & late == set()
    assert [stage.name for stage in report.stages][:2] == ["samples", "compile"]
