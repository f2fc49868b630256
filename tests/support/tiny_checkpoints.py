"""Tiny random checkpoints, one per architecture and RoPE kind, in each architecture's own config and naming.

Only numpy and safetensors: ``scripts/make_goldens.py`` imports this file under torch too.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

_SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "internlm2": "InternLM2ForCausalLM",
    "internlm3": "InternLM3ForCausalLM",
}
_SHORT_FACTOR = [1.0 + 0.05 * i for i in range(12)]
_LONG_FACTOR = [1.0 + 0.5 * i for i in range(12)]


def _config(model_type: str, **changes: Any) -> dict[str, Any]:
    return {"architectures": [_ARCHITECTURES[model_type]], "model_type": model_type, **_SIZES, **changes}


# Some RoPE sections are spelled as transformers 4 wrote them (`type`, then `rope_type`), some as transformers 5 does.
CASES: dict[str, dict[str, Any]] = {
    "llama2": _config("llama", num_key_value_heads=4),
    "llama3": _config(
        "llama",
        eos_token_id=[2, 3],
        max_position_embeddings=1024,
        # Wavelengths of head_dim 16 are 6, 20 | 63 | 199 and more: kept, blended, divided.
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    ),
    "smollm2": _config("llama", tie_word_embeddings=True, num_hidden_layers=3, num_attention_heads=8, hidden_size=96),
    "llama_bias": _config("llama", attention_bias=True, mlp_bias=True, head_dim=24),
    "linear": _config("llama", rope_scaling={"type": "linear", "factor": 4.0}),
    "dynamic_beyond": _config("llama", max_position_embeddings=24, rope_scaling={"type": "dynamic", "factor": 2.0}),
    "dynamic_within": _config("llama", max_position_embeddings=64, rope_scaling={"type": "dynamic", "factor": 2.0}),
    "yarn": _config(
        "llama",
        max_position_embeddings=1024,
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    ),
    "yarn_mscale": _config(
        "llama",
        head_dim=32,
        max_position_embeddings=1024,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1000.0,  # wins over the one beside the section
            "factor": 8.0,
            "original_max_position_embeddings": 128,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "mscale": 1.5,
            "mscale_all_dim": 0.5,
            "truncate": False,
        },
    ),
    "longrope_short": _config(
        "llama",
        head_dim=24,
        rope_scaling={
            "rope_type": "longrope",
            "short_factor": _SHORT_FACTOR,
            "long_factor": _LONG_FACTOR,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "longrope_long": _config(
        "llama",
        head_dim=24,
        original_max_position_embeddings=32,  # beside the section, as Phi-3 has it
        rope_scaling={"rope_type": "longrope", "short_factor": _SHORT_FACTOR, "long_factor": _LONG_FACTOR},
    ),
    "mistral": _config("mistral", sliding_window=8, head_dim=24),
    "qwen2": _config("qwen2", rope_theta=1e6, use_sliding_window=False, sliding_window=8, max_window_layers=1),
    "qwen2_window": _config(
        "qwen2", num_hidden_layers=3, use_sliding_window=True, sliding_window=8, max_window_layers=1
    ),
    "qwen3": _config("qwen3", head_dim=32, rope_theta=1e6, attention_bias=False),
    "internlm2": _config(
        "internlm2",
        bias=False,
        rope_theta=1e6,
        max_position_embeddings=24,
        rope_scaling={"type": "dynamic", "factor": 2.0},
    ),
    "internlm2_bias": _config("internlm2", bias=True, rope_scaling=None),
    "internlm3": _config(
        "internlm3",
        qkv_bias=True,
        bias=True,
        head_dim=24,
        rope_theta=5e4,
        max_position_embeddings=24,
        rope_scaling={"rope_type": "dynamic", "factor": 6.0},
    ),
}


def head_dim(config: dict[str, Any]) -> int:
    """H of a case."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def shapes(case: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, as the checkpoint's own naming has it (weights are [out, in])."""
    config = CASES[case]
    family, d, f, h = config["model_type"], config["hidden_size"], config["intermediate_size"], head_dim(config)
    q, kv, v = config["num_attention_heads"] * h, config["num_key_value_heads"] * h, config["vocab_size"]
    qkv_bias = family == "qwen2" or any(config.get(key) for key in ("attention_bias", "qkv_bias"))
    o_bias = bool(config.get("attention_bias") or config.get("bias"))
    mlp_bias = bool(config.get("mlp_bias") or (family == "internlm3" and config["bias"]))
    if family == "internlm2":
        out: dict[str, tuple[int, ...]] = {"model.tok_embeddings.weight": (v, d)}
        for layer in range(config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}."
            _linear(out, prefix + "attention.wqkv", q + 2 * kv, d, config["bias"])
            _linear(out, prefix + "attention.wo", d, q, config["bias"])
            _linear(out, prefix + "feed_forward.w1", f, d, False)
            _linear(out, prefix + "feed_forward.w3", f, d, False)
            _linear(out, prefix + "feed_forward.w2", d, f, False)
            out[prefix + "attention_norm.weight"] = out[prefix + "ffn_norm.weight"] = (d,)
        return {**out, "model.norm.weight": (d,), "output.weight": (v, d)}
    out = {"model.embed_tokens.weight": (v, d)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        _linear(out, prefix + "self_attn.q_proj", q, d, qkv_bias)
        _linear(out, prefix + "self_attn.k_proj", kv, d, qkv_bias)
        _linear(out, prefix + "self_attn.v_proj", kv, d, qkv_bias)
        _linear(out, prefix + "self_attn.o_proj", d, q, o_bias)
        if family == "qwen3":
            out[prefix + "self_attn.q_norm.weight"] = out[prefix + "self_attn.k_norm.weight"] = (h,)
        _linear(out, prefix + "mlp.gate_proj", f, d, mlp_bias)
        _linear(out, prefix + "mlp.up_proj", f, d, mlp_bias)
        _linear(out, prefix + "mlp.down_proj", d, f, mlp_bias)
        out[prefix + "input_layernorm.weight"] = out[prefix + "post_attention_layernorm.weight"] = (d,)
    out["model.norm.weight"] = (d,)
    if not config["tie_word_embeddings"]:
        out["lm_head.weight"] = (v, d)
    return out


def tensors(case: str) -> dict[str, np.ndarray]:
    """Random float32 weights by name; the same on every machine.

    Scales keep logits O(1) and give attention scores a standard deviation near 2, so that an error in RoPE or in a
    window shows in the logits.
    """
    return {name: _values(case, name, shape) for name, shape in shapes(case).items()}


def write_checkpoint(case: str, directory: Path, dtype: Any = np.float32, shards: int = 1) -> Path:
    """Writes ``config.json`` and safetensors, with an index if ``shards`` is above 1. Returns the directory."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = {**CASES[case], "torch_dtype": np.dtype(dtype).name}
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    weights = {name: value.astype(dtype) for name, value in tensors(case).items()}
    if shards == 1:
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        return directory
    names, weight_map = list(weights), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: weights[name] for name in names[shard::shards]}
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    total = sum(value.nbytes for value in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return directory


def _linear(out: dict[str, tuple[int, ...]], name: str, rows: int, columns: int, bias: bool) -> None:
    out[name + ".weight"] = (rows, columns)
    if bias:
        out[name + ".bias"] = (rows,)


def _values(case: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = np.random.RandomState(zlib.crc32(f"{case}/{name}".encode())).standard_normal(shape)
    if "norm" in name:
        return (1 + 0.1 * noise).astype(np.float32)
    if name.endswith(".bias"):
        return (0.3 * noise).astype(np.float32)
    if "embed" in name and not CASES[case]["tie_word_embeddings"]:
        return noise.astype(np.float32)
    sharper = 1.4 if any(part in name for part in ("q_proj", "k_proj", "wqkv")) else 1.0
    return (sharper * noise / np.sqrt(shape[-1])).astype(np.float32)
