"""The ``config.json`` that a GGUF file's metadata stands for."""

import math
from typing import Any

from gguf.constants import GGMLQuantizationType

from jaxdeploy.errors import CheckpointError
from jaxdeploy.weights.gguf_file import GGUFFile

ARCHITECTURES = ("llama", "mistral3", "internlm2", "qwen2", "qwen3")

_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_DOWN = "model.layers.0.mlp.down_proj"
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "internlm3": "InternLM3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_DTYPES = {GGMLQuantizationType.F32: "float32", GGMLQuantizationType.F16: "float16"}
# Keys that change the arithmetic in a way that the decoder does not have; 0 (or 1 for a factor) switches them off.
_UNSUPPORTED = {
    "expert_count": 0,
    "attention.temperature_scale": 0,
    "attn_logit_softcapping": 0,
    "final_logit_softcapping": 0,
    "logit_scale": 1,
    "residual_scale": 1,
    "embedding_scale": 1,
}


def model_config_dict(gguf: GGUFFile) -> dict[str, Any]:
    """A Hugging Face style ``config.json`` for ``ModelConfig.from_hf``, matching the names of ``gguf.names()``.

    ``model_type`` follows those names: InternLM2, whose q, k, v GGUF keeps apart, reads as llama. Divisors of the RoPE
    frequencies become ``rope_scaling`` of type "factors". The dtype of quantized weights reads as bfloat16.

    Raises:
        CheckpointError: an architecture that is not supported, a key that is missing or of a wrong type, or a feature
            (experts, soft-capping, partial RoPE) that the decoder does not have; names the key and its value.
    """
    architecture = gguf.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{gguf.path}: general.architecture {architecture!r} is not supported; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    fields = _Fields(gguf, architecture)
    for key, off in _UNSUPPORTED.items():
        value = fields.number(key, off)
        if value not in (0, off):
            raise CheckpointError(f"{gguf.path}: {architecture}.{key} = {value} is not supported")
    heads, hidden = fields.size("attention.head_count"), fields.size("embedding_length")
    head_dim = fields.size("attention.key_length", fields.size("rope.dimension_count", hidden // heads))
    for key in ("rope.dimension_count", "attention.value_length"):
        if fields.size(key, head_dim) != head_dim:
            raise CheckpointError(
                f"{gguf.path}: {architecture}.{key} = {fields.size(key)} is not supported, "
                f"expected the head's size {head_dim}"
            )
    window = fields.size("attention.sliding_window", 0)
    qkv_bias = f"{_block('self_attn.q_proj')}.bias" in gguf.names()
    model_type = _model_type(gguf, architecture, window, qkv_bias)
    vocab_size = gguf.info(_EMBEDDING).shape[0]
    config = {
        "architectures": [_CLASSES[model_type]],
        "model_type": model_type,
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "num_hidden_layers": fields.size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": fields.size("feed_forward_length"),
        "hidden_act": "silu",
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": fields.number("rope.freq_base", 10_000.0),
        "rope_scaling": _rope_scaling(gguf, fields),
        "max_position_embeddings": fields.size("context_length"),
        "tie_word_embeddings": _HEAD not in gguf.names(),
        "bos_token_id": _token(gguf, "tokenizer.ggml.bos_token_id", vocab_size),
        "eos_token_id": _eos_tokens(gguf, vocab_size),
        "sliding_window": window or None,
        "attention_bias": qkv_bias,
        "mlp_bias": f"{_DOWN}.bias" in gguf.names(),
        "dtype": _DTYPES.get(gguf.stored_type(f"{_DOWN}.weight"), "bfloat16"),
    }
    if model_type == "internlm3":
        config |= {"qkv_bias": True, "bias": False}
    if model_type in ("qwen2", "qwen3"):
        config |= {"use_sliding_window": window > 0, "max_window_layers": 0}
    return config


def _model_type(gguf: GGUFFile, architecture: str, window: int, qkv_bias: bool) -> str:
    if architecture in ("qwen2", "qwen3"):
        return architecture
    o_bias = f"{_block('self_attn.o_proj')}.bias" in gguf.names()
    if qkv_bias != o_bias:
        if not qkv_bias or window:
            raise CheckpointError(
                f"{gguf.path}: {architecture} with {qkv_bias=}, {o_bias=} and sliding_window {window} is not supported"
            )
        return "internlm3"  # Llama's layers and names, with biases on q, k and v alone
    if architecture == "mistral3" or window:
        return "mistral"
    return "llama"


def _rope_scaling(gguf: GGUFFile, fields: "_Fields") -> dict[str, Any] | None:
    kind = fields.gguf.metadata.get(f"{fields.architecture}.rope.scaling.type")
    factor = fields.number("rope.scaling.factor", fields.number("rope.scale_linear", 0.0))
    if kind is None:
        kind = "linear" if factor not in (0, 1) else "none"
    if gguf.rope_factors is not None:
        if kind != "none":
            raise CheckpointError(f"{gguf.path}: rope_freqs together with rope.scaling.type {kind!r} is not supported")
        factors = gguf.rope_factors.tolist()
        return {"rope_type": "factors", "factors": factors, "short_factor": factors, "long_factor": factors}
    if kind == "none" or (kind == "linear" and factor in (0, 1)):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn" or factor <= 0:
        raise CheckpointError(
            f"{gguf.path}: rope.scaling.type {kind!r} with factor {factor} is not supported; "
            "supported: none, linear and yarn with a positive factor"
        )
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": fields.size(
            "rope.scaling.original_context_length", fields.size("context_length")
        ),
        "beta_fast": fields.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": fields.number("rope.scaling.yarn_beta_slow", 1.0),
        "attention_factor": _yarn_attention_factor(fields, factor),
    }


def _yarn_attention_factor(fields: "_Fields", factor: float) -> float:
    """YaRN's ``0.1 ln(factor) + 1``, divided by ``0.1 m ln(factor) + 1`` where ``yarn_log_multiplier`` m is given."""
    stretch = 0.1 * math.log(factor) if factor > 1 else 0.0
    multiplier = fields.number("rope.scaling.yarn_log_multiplier", 0.0)
    scale = fields.number("rope.scaling.attn_factor", 1.0) * fields.number("rope.scaling.yarn_attn_factor", 1.0)
    return scale * (stretch + 1) / (multiplier * stretch + 1)


def _token(gguf: GGUFFile, key: str, vocab_size: int) -> int | None:
    value = gguf.metadata.get(key)
    if value is not None and not (type(value) is int and 0 <= value < vocab_size):
        raise CheckpointError(f"{gguf.path}: {key} is {value!r}, expected a token id below {vocab_size}")
    return value


def _eos_tokens(gguf: GGUFFile, vocab_size: int) -> int | list[int] | None:
    """End of text, of turn and of message: whatever of them the file names ends an answer."""
    keys = (f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot", "eom"))
    tokens = list(dict.fromkeys(token for key in keys if (token := _token(gguf, key, vocab_size)) is not None))
    return tokens[0] if len(tokens) == 1 else tokens or None


def _block(module: str) -> str:
    return f"model.layers.0.{module}"


class _Fields:
    """Typed access to the keys of one architecture; every error names file, key and value."""

    def __init__(self, gguf: GGUFFile, architecture: str):
        self.gguf = gguf
        self.architecture = architecture

    def size(self, key: str, default: int | None = None) -> int:
        value = self._value(key, default)
        if type(value) is not int or value < 0:
            raise CheckpointError(
                f"{self.gguf.path}: {self.architecture}.{key} is {value!r}, expected one whole number for all layers"
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise CheckpointError(f"{self.gguf.path}: {self.architecture}.{key} is {value!r}, expected a number")
        return value

    def _value(self, key: str, default: Any) -> Any:
        value = self.gguf.metadata.get(f"{self.architecture}.{key}", default)
        if value is None:
            raise CheckpointError(f"{self.gguf.path}: metadata key {self.architecture}.{key} is missing")
        return value
