import subprocess
import sys

import pytest
from support.tiny_checkpoints import CASES, shapes
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from jaxdeploy.config.model import FAMILIES, ModelConfig
from jaxdeploy.errors import ConfigError

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "max_position_embeddings": 2048,
}
THEIRS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


def read(architecture: str = "LlamaForCausalLM", **changes) -> ModelConfig:
    return ModelConfig.from_hf({**LLAMA, "architectures": [architecture], **changes})


def theirs_windows(config) -> tuple[int, ...]:
    """Sliding windows as transformers' model code applies them."""
    window = getattr(config, "sliding_window", None) or 0
    if config.model_type == "llama":
        window = 0
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case]["model_type"] in THEIRS])
def test_tiny_checkpoints_agree_with_transformers(case):
    ours, theirs = ModelConfig.from_hf(CASES[case]), THEIRS[CASES[case]["model_type"]].from_dict(CASES[case])
    for key in ("vocab_size", "hidden_size", "intermediate_size", "rms_norm_eps", "max_position_embeddings"):
        assert getattr(ours, key) == getattr(theirs, key)
    assert (ours.num_layers, ours.num_heads) == (theirs.num_hidden_layers, theirs.num_attention_heads)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.sliding_windows == theirs_windows(theirs)
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert ours.rope.kind == theirs.rope_parameters["rope_type"]


@pytest.mark.parametrize("family", THEIRS)
def test_left_out_keys_mean_what_transformers_makes_of_them(family):
    heads = {"llama": 8, "mistral": 8, "qwen2": 32, "qwen3": 32}[family]
    cfg = {**LLAMA, "num_attention_heads": heads, "model_type": family, "use_sliding_window": True}
    cfg["num_hidden_layers"] = 30
    del cfg["architectures"]
    ours, theirs = ModelConfig.from_hf(cfg), THEIRS[family].from_dict(cfg)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 64 // heads)
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.bos_token_id == theirs.bos_token_id
    assert ours.eos_token_ids == (() if theirs.eos_token_id is None else (theirs.eos_token_id,))
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.sliding_windows == theirs_windows(theirs)
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]


@pytest.mark.parametrize("case", CASES)
def test_biases_and_norms_are_those_of_the_tensors(case):
    config, names = ModelConfig.from_hf(CASES[case]), shapes(case)
    first = "model.layers.0."
    q, o, up = ("wqkv", "wo", "w1") if config.family == "internlm2" else ("q_proj", "o_proj", "up_proj")
    biased = {name.split(".")[-2] for name in names if name.startswith(first) and name.endswith(".bias")}
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == (q in biased, o in biased, up in biased)
    assert config.qk_norm == (first + "self_attn.q_norm.weight" in names)
    assert config.tie_word_embeddings == ("lm_head.weight" not in names and "output.weight" not in names)


@pytest.mark.parametrize(
    ("architecture", "keys", "biases"),
    [
        ("LlamaForCausalLM", {}, (False, False, False)),
        ("LlamaForCausalLM", {"attention_bias": True}, (True, True, False)),
        ("LlamaForCausalLM", {"mlp_bias": True}, (False, False, True)),
        ("MistralForCausalLM", {"attention_bias": True, "bias": True}, (False, False, False)),
        ("Qwen2ForCausalLM", {"num_key_value_heads": 8}, (True, False, False)),
        ("Qwen3ForCausalLM", {"num_key_value_heads": 8, "attention_bias": True}, (True, True, False)),
        ("InternLM2ForCausalLM", {"bias": False}, (False, False, False)),
        ("InternLM2ForCausalLM", {}, (True, True, False)),  # its configuration class says True
        ("InternLM3ForCausalLM", {"num_key_value_heads": 8, "qkv_bias": True}, (True, False, False)),
        ("InternLM3ForCausalLM", {"num_key_value_heads": 8, "bias": True}, (False, True, True)),
    ],
)
def test_bias_flags(architecture, keys, biases):
    config = read(architecture, **keys)
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == biases


def test_sliding_windows():
    assert read("MistralForCausalLM", sliding_window=8).sliding_windows == (8,) * 4
    assert read("MistralForCausalLM", sliding_window=None).sliding_windows == (0,) * 4
    assert read("LlamaForCausalLM", sliding_window=8).sliding_windows == (0,) * 4
    qwen = {"num_key_value_heads": 8, "sliding_window": 8, "max_window_layers": 3}
    assert read("Qwen2ForCausalLM", **qwen).sliding_windows == (0,) * 4
    assert read("Qwen2ForCausalLM", **qwen, use_sliding_window=True).sliding_windows == (0, 0, 0, 8)
    kinds = ["sliding_attention", "full_attention"] * 2
    assert read("Qwen3ForCausalLM", **qwen, use_sliding_window=True, layer_types=kinds).sliding_windows == (8, 0, 8, 0)
    assert read("Qwen3ForCausalLM", **qwen, layer_types=["full_attention"] * 4).sliding_windows == (0,) * 4


def test_published_internlm2_5():
    config = read("InternLM2ForCausalLM", bias=False, rope_scaling={"type": "dynamic", "factor": 2.0}, rope_theta=1e6)
    assert config.family == "internlm2"
    assert (config.rope.kind, config.rope.original_max_position) == ("dynamic", 2048)


def test_head_dim_and_kv_heads():
    assert read().num_kv_heads == read(num_key_value_heads=None).num_kv_heads == 8
    assert read("MistralForCausalLM", num_attention_heads=16, hidden_size=64).num_kv_heads == 8
    assert (read().head_dim, read(head_dim=24).head_dim, read(head_dim=None).head_dim) == (8, 24, 8)
    assert read(hidden_size=100, head_dim=16).head_dim == 16  # heads need not divide hidden_size then


def test_tokens_and_dtype():
    assert read(eos_token_id=[7, 9]).eos_token_ids == (7, 9)
    assert read(eos_token_id=7).eos_token_ids == (7,)
    assert read(eos_token_id=None, bos_token_id=None).eos_token_ids == ()
    assert read(bos_token_id=None).bos_token_id is None
    assert read(torch_dtype="bfloat16").dtype == "bfloat16"
    assert read(dtype="float16", torch_dtype="bfloat16").dtype == "float16"
    assert read(torch_dtype="torch.bfloat16").dtype == "bfloat16"
    assert read().dtype == "float32"


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, ["architectures=['GPT2LMHeadModel']", *FAMILIES]),
        ({"architectures": None, "model_type": "gpt2"}, ["model_type='gpt2'", *FAMILIES]),
        ({"architectures": "LlamaForCausalLM"}, ["architectures='LlamaForCausalLM'"]),
        ({"vocab_size": None}, ["vocab_size is missing"]),
        ({"max_position_embeddings": None}, ["max_position_embeddings is missing"]),
        ({"hidden_size": "64"}, ["hidden_size='64'", "whole number"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers=0", "at least 1"]),
        ({"num_hidden_layers": True}, ["num_hidden_layers=True"]),
        ({"num_key_value_heads": 3}, ["num_attention_heads=8", "num_key_value_heads=3", "divisible"]),
        ({"hidden_size": 60}, ["hidden_size=60", "num_attention_heads=8", "head_dim"]),
        ({"head_dim": 15}, ["head_dim=15", "even"]),
        ({"hidden_act": "gelu"}, ["hidden_act='gelu'", "'silu'"]),
        ({"rms_norm_eps": 0}, ["rms_norm_eps=0", "positive"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings='yes'", "true or false"]),
        ({"eos_token_id": [2, "</s>"]}, ["eos_token_id='</s>'"]),
        ({"bos_token_id": -1}, ["bos_token_id=-1"]),
        ({"torch_dtype": "float8_e4m3fn"}, ["torch_dtype='float8_e4m3fn'", "bfloat16, float16, float32"]),
        ({"rope_scaling": {"type": "magic", "factor": 2}}, ["rope_scaling.type='magic'", "longrope"]),
        (
            {"architectures": ["MistralForCausalLM"], "sliding_window": 4, "layer_types": ["chunked_attention"] * 4},
            ["layer_types[0]='chunked_attention'", "full_attention"],
        ),
        (
            {"architectures": ["MistralForCausalLM"], "sliding_window": None, "layer_types": ["sliding_attention"] * 4},
            ["layer_types[0]", "needs sliding_window"],
        ),
        ({"architectures": ["MistralForCausalLM"], "layer_types": []}, ["layer_types=[]", "num_hidden_layers=4"]),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 0}, ["sliding_window=0"]),
    ],
)
def test_errors_name_the_key_the_value_and_the_way_out(changes, parts):
    with pytest.raises(ConfigError) as error:
        ModelConfig.from_hf({**LLAMA, **changes})
    for part in parts:
        assert part in str(error.value)


def test_reading_a_config_imports_no_jax():
    code = (
        "import sys; from jaxdeploy.config.model import ModelConfig; "
        f"ModelConfig.from_hf({LLAMA!r}); sys.exit(any(name in sys.modules for name in ('jax', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
