"""Opening: what lies there, and what to do when it is not a checkpoint."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.quantized_checkpoints import write_quantized
from support.tiny_checkpoints import tensors, write_checkpoint

from jaxdeploy.errors import CheckpointError, ConfigError
from jaxdeploy.weights.checkpoint import open_checkpoint
from jaxdeploy.weights.loader import load_parameters


def test_a_name_that_is_no_folder_says_how_to_get_the_model():
    with pytest.raises(CheckpointError, match=r"'org/model' is not a folder here.*local folders.*--local-dir model"):
        open_checkpoint("org/model")


def test_missing_path(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere: no such file or folder"):
        open_checkpoint(tmp_path / "nowhere")


def test_folder_without_a_model(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json and no \.gguf"):
        open_checkpoint(tmp_path)


def test_single_file_of_another_kind(tmp_path):
    file = write_checkpoint("llama2", tmp_path) / "model.safetensors"
    with pytest.raises(CheckpointError, match=r"must be a \.gguf.*give the folder"):
        open_checkpoint(file)


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[1]", "JSON list, expected an object")])
def test_broken_config(text, message, tmp_path):
    write_checkpoint("llama2", tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        open_checkpoint(tmp_path)


def test_unsupported_model_names_the_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(ConfigError, match=r"config\.json: .*GPT2LMHeadModel.*supported are"):
        open_checkpoint(tmp_path)


def test_truncated_file(tmp_path):
    file = write_checkpoint("llama2", tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated.*Download it again"):
        open_checkpoint(tmp_path)


def test_missing_shard(tmp_path):
    (write_checkpoint("llama2", tmp_path, shards=3) / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors is missing"):
        open_checkpoint(tmp_path)


def test_pickles_are_never_opened(tmp_path):
    (write_checkpoint("llama2", tmp_path) / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"only pickled weights.*never read"):
        open_checkpoint(tmp_path)


def test_several_gguf_files(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"2 GGUF files \(a\.gguf, b\.gguf\)"):
        open_checkpoint(tmp_path)


def test_model_format_of_dense_weights(tmp_path):
    write_checkpoint("llama2", tmp_path)
    assert open_checkpoint(tmp_path, "hf").model_format == "hf"
    with pytest.raises(CheckpointError, match="model_format='awq' was asked for, found 'hf'"):
        open_checkpoint(tmp_path, "awq")


def test_model_format_of_int4_weights(tmp_path):
    write_quantized("llama2", "gptq_v2", tmp_path)
    assert open_checkpoint(tmp_path, "gptq").model_format == "gptq"
    for other in ("hf", "awq", "gguf"):
        with pytest.raises(CheckpointError, match=f"model_format='{other}' was asked for, found 'gptq'"):
            open_checkpoint(tmp_path, other)


@pytest.mark.parametrize("case", ["smollm2", "internlm2"])
def test_names_without_the_leading_model(case, tmp_path):
    write_checkpoint(case, tmp_path / "a")
    expected = load_parameters(open_checkpoint(tmp_path / "a"), "float32")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_bytes((tmp_path / "a" / "config.json").read_bytes())
    bare = {name.removeprefix("model."): value for name, value in tensors(case).items()}
    save_file(bare, tmp_path / "b" / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path / "b")
    assert not checkpoint.model_prefix
    found = load_parameters(checkpoint, "float32")
    np.testing.assert_array_equal(found["embedding"], expected["embedding"])
    np.testing.assert_array_equal(
        found["layers"]["attention"]["qkv"]["weight"], expected["layers"]["attention"]["qkv"]["weight"]
    )
