"""Whole runs on tiny checkpoints: what is written loads, computes the same, and survives interruptions."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny_gguf import tiny_fields, tiny_tensors, write_gguf
from support.tiny_text_model import TEXT, write_text_model

from jaxdeploy import functional as jd
from jaxdeploy.errors import CheckpointError, ConfigError
from jaxdeploy.lite import quantize, work_folder
from jaxdeploy.lite.perplexity import evaluate_perplexity
from jaxdeploy.lite.quantize import quantize_model
from jaxdeploy.lite.recipe import Calibration, Recipe
from jaxdeploy.lite.report import QuantizationReport
from jaxdeploy.model.rotation import rotate_heads
from jaxdeploy.weights.quant_tensor import QuantTensor
from jaxdeploy.weights.safetensors_files import SafetensorsFiles
from jaxdeploy.weights.safetensors_writer import write_safetensors

RECIPES = {
    "nearest": Recipe(group_size=16, scaling="none", clip=False),
    "fixed": Recipe(group_size=16, scaling="fixed", clip=False),
    "searched": Recipe(group_size=16, alphas=5),
    "gptq": Recipe(group_size=16, scaling="none", clip=False, rounding="gptq"),
    "gptq_act_order": Recipe(group_size=16, scaling="none", clip=False, rounding="gptq", act_order=True, format="gptq"),
    "gptq_act_order_in_awq": Recipe(group_size=16, scaling="search", alphas=3, rounding="gptq", act_order=True),
    "gptq_format": Recipe(group_size=32, scaling="search", alphas=3, format="gptq"),
    "learned": Recipe(group_size=16, scaling="none", clip=False, rounding="learned", steps=5, step_tokens=64),
    "whole_rows": Recipe(group_size=-1, scaling="none", clip=False, rounding="gptq"),
}
TOKENS = np.random.RandomState(0).randint(3, 128, 24)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def options(text_file: Path) -> Calibration:
    return Calibration(dataset=str(text_file), samples=6, seqlen=24, batch_size=4, eval_samples=3)


def logits_of(path: Path) -> jax.Array:
    model = jd.load(path)
    cache = jd.new_cache(model.decoder, 1, 24, page_size=8)
    counts = jnp.array([len(TOKENS)], jnp.int32)
    return jd.prefill(model.decoder, model.params, cache, jnp.asarray(TOKENS, jnp.int32)[None], counts)[0]


def run(tmp_path: Path, options: Calibration, recipe: Recipe, case: str = "llama3") -> tuple[Path, QuantizationReport]:
    source = write_text_model(case, tmp_path / "source")
    return source, quantize_model(source, tmp_path / "out", recipe, options)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_writes_a_model_that_runs_packed(tmp_path: Path, options: Calibration, name: str):
    source, report = run(tmp_path, options, RECIPES[name])
    out = tmp_path / "out"
    packed = [leaf for leaf in jax.tree.leaves(jd.load(out).params, is_leaf=is_packed) if is_packed(leaf)]
    assert len(packed) == 4
    exact, found = logits_of(source), logits_of(out)
    error = float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact))
    assert 0 < error < 0.5, "an int4 model is near its original, and not equal to it"
    assert report.loss_before is not None
    assert report.loss_after is not None
    assert report.loss_after != report.loss_before
    assert all(np.isfinite(record.error) and record.error < 0.3 for record in report.layers)
    assert sorted(file.name for file in out.iterdir() if file.suffix != ".png") == [
        "config.json", "model.safetensors", "report.html", "report.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert (out / "error_by_layer.png").is_file()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def is_packed(leaf: object) -> bool:
    return isinstance(leaf, QuantTensor)


@pytest.mark.parametrize(
    ("case", "name"),
    [("internlm2_bias", "searched"), ("internlm2_bias", "gptq_act_order"), ("qwen3", "learned")],
)
def test_the_written_model_has_the_losses_of_the_report(tmp_path: Path, text_file: Path, case: str, name: str):
    """They come from the activations that the run carried along; the loaded checkpoint must have them too."""
    held_out = tmp_path / "held_out.txt"
    held_out.write_text(TEXT[:72])
    options = Calibration(dataset=str(text_file), samples=6, seqlen=24, eval_text=str(held_out), eval_samples=3)
    source, report = run(tmp_path, options, RECIPES[name], case)
    for path, loss in ((source, report.loss_before), (tmp_path / "out", report.loss_after)):
        assert loss == pytest.approx(evaluate_perplexity(path, TEXT[:72], window=24).nll_per_token, abs=2e-4)


def test_config_says_what_was_written(tmp_path: Path, options: Calibration):
    run(tmp_path, options, RECIPES["searched"], "internlm2")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == "float16"
    assert config["quantization_config"] == {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": 16,
        "zero_point": True,
        "modules_to_not_convert": ["output"],
    }
    source = SafetensorsFiles(tmp_path / "out")
    names = {name for name in source.names() if ".0." in name}
    assert "model.layers.0.attention.wqkv.qweight" in names
    assert {str(source.info(name).dtype) for name in names} == {"int32", "float16"}
    source.close()


def test_rotated_values_are_stored_and_said(tmp_path: Path, options: Calibration):
    source = write_text_model("internlm2_bias", tmp_path / "source")
    for name, recipe in (("plain", RECIPES["nearest"]), ("turned", replace(RECIPES["nearest"], rotate_values=True))):
        quantize_model(source, tmp_path / name, recipe, options)
    found, plain = jd.load(tmp_path / "turned"), jd.load(tmp_path / "plain")
    assert (plain.decoder.config.value_rotation, found.decoder.config.value_rotation) == ("none", "stored")
    values = found.params["layers"]["attention"]["qkv"]["bias"][:, -32:].reshape(2, 2, 16)
    expected = plain.params["layers"]["attention"]["qkv"]["bias"][:, -32:].reshape(2, 2, 16)
    np.testing.assert_allclose(rotate_heads(values), expected, atol=2e-3)
    exact, turned = logits_of(source), logits_of(tmp_path / "turned")
    assert float(jnp.linalg.norm(turned - exact) / jnp.linalg.norm(exact)) < 0.5
    assert not np.array_equal(turned, logits_of(tmp_path / "plain"))


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, options: Calibration, monkeypatch):
    source = write_text_model("llama3", tmp_path / "source")
    whole = tmp_path / "whole"
    quantize_model(source, whole, RECIPES["searched"], options)

    def killed_at(phase: str, done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_model(source, tmp_path / "out", RECIPES["searched"], options, progress=killed_at)
    assert not (tmp_path / "out").exists(), "nothing that looks like a model"
    quantized: list[int] = []
    plain = quantize.LayerQuantizer.quantize
    monkeypatch.setattr(quantize.LayerQuantizer, "quantize", lambda *args: (quantized.append(1), plain(*args))[1])
    report = quantize_model(source, tmp_path / "out", RECIPES["searched"], options, resume=True)
    assert len(quantized) == 1, "one of two layers was done"
    assert len(report.layers) == 2
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_resume_refuses_other_settings(tmp_path: Path, options: Calibration):
    def killed(phase: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    source = write_text_model("llama3", tmp_path / "source")
    with pytest.raises(KeyboardInterrupt):
        quantize_model(source, tmp_path / "out", RECIPES["searched"], options, progress=killed)
    with pytest.raises(ConfigError, match="scaling: 'search' then, 'none' now"):
        quantize_model(source, tmp_path / "out", RECIPES["nearest"], options, resume=True)


def test_a_full_disk_leaves_no_model_and_resume_goes_on(tmp_path: Path, options: Calibration, monkeypatch):
    source = write_text_model("llama3", tmp_path / "source")

    def full(directory, tensors, *args):
        if directory.name == "model":
            raise OSError(28, "No space left on device")
        return write_safetensors(directory, tensors)

    monkeypatch.setattr("jaxdeploy.lite.writer.write_safetensors", full)
    with pytest.raises(ConfigError, match=r"No space left on device.*--resume"):
        quantize_model(source, tmp_path / "out", RECIPES["nearest"], options)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    quantize_model(source, tmp_path / "out", RECIPES["nearest"], options, resume=True)
    assert (tmp_path / "out" / "config.json").is_file()


def test_an_existing_model_is_replaced_only_by_force(tmp_path: Path, options: Calibration):
    source, _ = run(tmp_path, options, RECIPES["nearest"])
    with pytest.raises(ConfigError, match="--force"):
        quantize_model(source, tmp_path / "out", RECIPES["gptq"], options)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    quantize_model(source, tmp_path / "out", RECIPES["gptq"], options, force=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != before
    (tmp_path / "out" / "config.json").unlink()
    with pytest.raises(ConfigError, match="is no model's folder"):
        quantize_model(source, tmp_path / "out", RECIPES["gptq"], options, force=True)


def test_nan_is_named(tmp_path: Path, options: Calibration):
    source = write_text_model("llama3", tmp_path / "source")
    files = SafetensorsFiles(source)
    tensors = {name: np.array(files.read(name)) for name in files.names()}
    files.close()
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = np.nan
    (source / "model.safetensors").unlink()
    write_safetensors(source, tensors.items())
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.down_proj\.weight.*1 values.*NaN"):
        quantize_model(source, tmp_path / "out", RECIPES["nearest"], options)
    assert not (tmp_path / "out").exists()


def test_bad_inputs_are_refused_at_once(tmp_path: Path, options: Calibration):
    source, _ = run(tmp_path, options, RECIPES["nearest"])
    with pytest.raises(ConfigError, match="quantized already"):
        quantize_model(tmp_path / "out", tmp_path / "again", RECIPES["nearest"], options)
    with pytest.raises(ConfigError, match=r"64 does not divide the 96 inputs.*--w-group-size 32 or 16"):
        quantize_model(source, tmp_path / "again", Recipe(group_size=64), options)
    with pytest.raises(ConfigError, match="can't be written"):
        quantize_model(source, "/proc/nowhere/out", RECIPES["nearest"], options)
    with pytest.raises(ConfigError, match=r"--calib-seqlen 4096 is more than the model's context"):
        quantize_model(source, tmp_path / "again", RECIPES["nearest"], Calibration(dataset="self", seqlen=4096))
    with pytest.raises(ConfigError, match="is no file or folder here"):
        quantize_model(source, tmp_path / "again", RECIPES["nearest"], Calibration(dataset="nowhere", seqlen=24))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source", "text.txt"], "no litter"


def test_text_that_the_model_writes_itself(tmp_path: Path):
    options = Calibration(dataset="self", samples=4, seqlen=16, eval_samples=2)
    _, report = run(tmp_path, options, RECIPES["nearest"])
    assert (report.origin, report.samples, report.held_out) == ("self", 4, 2)


def test_dead_channels_and_constant_groups_give_no_nan(tmp_path: Path, options: Calibration):
    source = write_text_model("llama3", tmp_path / "source")
    files = SafetensorsFiles(source)
    tensors = {name: np.array(files.read(name)) for name in files.names()}
    files.close()
    for name, array in tensors.items():
        if name.endswith("layernorm.weight"):
            array[:7] = 0  # inputs of q, k, v and of gate, up that are always 0
        if name.endswith("up_proj.weight"):
            array[5:40] = 0  # so are some of down's
        if name.endswith(("q_proj.weight", "down_proj.weight")):
            array[:, :16] = 0
            array[3] = 0.5
    shutil.rmtree(source)
    write_text_model("llama3", source)
    (source / "model.safetensors").unlink()
    write_safetensors(source, tensors.items())
    for name in ("searched", "gptq", "learned"):
        report = quantize_model(source, tmp_path / name, RECIPES[name], options)
        assert all(np.isfinite(record.error) for record in report.layers)
        assert np.isfinite(np.asarray(logits_of(tmp_path / name))).all()


def test_calibration_tokens_are_kept_for_a_resumed_run(tmp_path: Path, options: Calibration, text_file: Path):
    def killed(phase: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    source = write_text_model("llama3", tmp_path / "source")
    with pytest.raises(KeyboardInterrupt):
        quantize_model(source, tmp_path / "out", RECIPES["nearest"], options, progress=killed)
    kept = work_folder.WorkFolder(tmp_path / "out").samples()
    assert kept is not None
    text_file.write_text(TEXT[::-1])
    quantize_model(source, tmp_path / "out", RECIPES["nearest"], options, resume=True)


def test_a_gguf_file_becomes_a_whole_checkpoint(tmp_path: Path):
    tokens = ["<s>", "</s>", "Ġ", "Ċ", *(chr(code) for code in range(97, 123)), "ab"]
    tokens += [f"<unused{number}>" for number in range(50 - len(tokens))]
    fields = tiny_fields(
        **{
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3, 3] + [1] * 48,
            "tokenizer.ggml.merges": ["a b"],
            "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
        }
    )
    source = write_gguf(tmp_path / "tiny.gguf", "llama", fields, tiny_tensors())
    (tmp_path / "text.txt").write_text("some plain words of text " * 40)
    options = Calibration(dataset=str(tmp_path / "text.txt"), samples=4, seqlen=16, eval_samples=2)
    report = quantize_model(source, tmp_path / "out", RECIPES["nearest"], options)
    model = jd.load(tmp_path / "out")
    assert model.tokenizer.encode("cab", add_special=False) == [6, tokens.index("ab")]
    assert model.tokenizer.chat_template == fields["tokenizer.chat_template"]
    assert model.tokenizer.eos_ids == model.decoder.config.eos_token_ids == (2,)
    assert report.bytes_before == 2 * sum(array.size for array in tiny_tensors().values())
