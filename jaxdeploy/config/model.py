"""What a checkpoint's ``config.json`` says about the decoder: sizes, biases, norms, windows, RoPE."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jaxdeploy.config.rope import RopeConfig
from jaxdeploy.errors import ConfigError

if TYPE_CHECKING:
    from jaxdeploy.config.quantization import QuantizationConfig

FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "InternLM2ForCausalLM": "internlm2",
    "InternLM3ForCausalLM": "internlm3",
}
DTYPES = ("bfloat16", "float16", "float32")
VALUE_ROTATIONS = ("none", "online", "fold", "stored")
OWN_SECTION = "jaxdeploy"
"""Key of ``config.json`` for what only this program knows; other engines pass over it."""
# What each family's own configuration class assumes for a key that config.json leaves out.
# A key absent here has the same meaning in every family (see from_hf); null never takes a default from this table.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"bos_token_id": 1, "eos_token_id": 2},
    "mistral": {"bos_token_id": 1, "eos_token_id": 2, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28, "head_dim": 128},
    "internlm2": {"bos_token_id": 1, "eos_token_id": 2, "bias": True},
    "internlm3": {"bos_token_id": 1, "eos_token_id": 2, "num_key_value_heads": 32},
}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything that the decoder needs to know, the same for every family.

    Attributes:
        family: naming of the weights: llama, mistral, qwen2, qwen3, internlm2 or internlm3.
        qkv_bias, o_bias, mlp_bias: which projections add a bias.
        qk_norm: RMS norm over each head of q and k before RoPE (Qwen3).
        sliding_windows: one number per layer, 0 = full attention. A window counts the token itself: a key is visible
            iff ``0 <= q_pos - k_pos < window``.
        dtype: the checkpoint's own: bfloat16, float16 or float32.
        quantization: how the weights are packed, None for dense weights.
        rotates_keys: keys and queries change their basis before keys are stored (see ``jaxdeploy/model/rotation.py``).
        value_rotation: one of VALUE_ROTATIONS. "none"; "online" turns values when they are stored and the attention's output back;
            "fold" has the loader turn the weights instead, which costs nothing afterwards; "stored": the checkpoint's weights
            are turned already.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_windows: tuple[int, ...]
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    dtype: str
    quantization: "QuantizationConfig | None" = None
    rotates_keys: bool = False
    value_rotation: str = "none"

    @classmethod
    def from_hf(cls, cfg: Mapping[str, Any]) -> "ModelConfig":
        """Reads a Hugging Face ``config.json`` of transformers 4 or 5, or of InternLM's own model code.

        Raises:
            ConfigError: unsupported architecture, missing key, or a value that can't work; the message names the key,
                the value and what is right.
        """
        family = _family(cfg)
        fields = _Fields(cfg, _DEFAULTS[family])
        num_layers, num_heads = fields.size("num_hidden_layers"), fields.size("num_attention_heads")
        hidden_size = fields.size("hidden_size")
        num_kv_heads = fields.optional_size("num_key_value_heads") or num_heads
        if num_heads % num_kv_heads:
            raise ConfigError(
                f"num_attention_heads={num_heads} must be divisible by num_key_value_heads={num_kv_heads}"
            )
        head_dim = _head_dim(fields, hidden_size, num_heads)
        activation = fields.get("hidden_act")
        if activation not in (None, "silu", "swish"):  # swish is transformers' other name of silu
            raise ConfigError(f"hidden_act={activation!r} is not supported; it must be 'silu'")
        qkv_bias, o_bias, mlp_bias = _biases(family, fields)
        return cls(
            family=family,
            vocab_size=fields.size("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=fields.size("intermediate_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            rms_norm_eps=fields.positive("rms_norm_eps", 1e-6),
            max_position_embeddings=fields.size("max_position_embeddings"),
            rope=RopeConfig.from_hf(cfg, head_dim),
            tie_word_embeddings=fields.flag("tie_word_embeddings"),
            qkv_bias=qkv_bias,
            o_bias=o_bias,
            mlp_bias=mlp_bias,
            qk_norm=family == "qwen3",
            sliding_windows=_sliding_windows(family, fields, num_layers),
            bos_token_id=fields.token("bos_token_id"),
            eos_token_ids=_eos_token_ids(fields),
            dtype=_dtype(cfg),
            quantization=_quantization(cfg),
            value_rotation="stored" if _own_flag(cfg, "values_rotated") else "none",
        )

    def with_rotation(self, *, foldable: bool) -> "ModelConfig":
        """The same model with keys and values turned before they are stored.

        Args:
            foldable: the loader may change the weights of values and of the output projection.
        """
        if self.value_rotation == "stored":
            return replace(self, rotates_keys=True)
        folds = foldable and self.quantization is None
        return replace(self, rotates_keys=True, value_rotation="fold" if folds else "online")


@dataclass(frozen=True, slots=True)
class _Fields:
    """Typed access to ``config.json``; every error names the key and what is right."""

    cfg: Mapping[str, Any]
    defaults: Mapping[str, Any]

    def get(self, key: str) -> Any:
        return self.cfg.get(key, self.defaults.get(key))

    def size(self, key: str) -> int:
        if self.cfg.get(key) is None:
            raise ConfigError(f"{key} is missing in config.json; it must be a positive whole number")
        return _whole(self.cfg[key], key, 1)

    def optional_size(self, key: str) -> int | None:
        value = self.get(key)
        return None if value is None else _whole(value, key, 1)

    def positive(self, key: str, default: float) -> float:
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ConfigError(f"{key}={value!r} must be a positive number")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise ConfigError(f"{key}={value!r} must be true or false")
        return bool(value)

    def token(self, key: str) -> int | None:
        value = self.get(key)
        return None if value is None else _whole(value, key, 0)


def _whole(value: Any, key: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{key}={value!r} must be a whole number of at least {least}")
    return value


def _family(cfg: Mapping[str, Any]) -> str:
    named = cfg.get("architectures") or []
    for architecture, family in FAMILIES.items():
        if isinstance(named, list | tuple) and architecture in named:
            return family
    if not named and cfg.get("model_type") in FAMILIES.values():
        return cfg["model_type"]
    shown = f"architectures={named!r}" if named else f"model_type={cfg.get('model_type')!r} (no architectures)"
    raise ConfigError(f"{shown} is not supported; supported are {', '.join(FAMILIES)}")


def _head_dim(fields: _Fields, hidden_size: int, num_heads: int) -> int:
    head_dim = fields.optional_size("head_dim")
    if head_dim is None:
        if hidden_size % num_heads:
            raise ConfigError(
                f"hidden_size={hidden_size} must be divisible by num_attention_heads={num_heads}, or head_dim be given"
            )
        head_dim = hidden_size // num_heads
    if head_dim % 2:
        raise ConfigError(f"head_dim={head_dim} must be even: RoPE rotates pairs of dimensions")
    return head_dim


def _biases(family: str, fields: _Fields) -> tuple[bool, bool, bool]:
    """(q/k/v, o, MLP), by the keys that each family's model code reads."""
    match family:
        case "llama":
            attention = fields.flag("attention_bias")
            return attention, attention, fields.flag("mlp_bias")
        case "qwen2":
            return True, False, False
        case "qwen3":
            attention = fields.flag("attention_bias")
            return attention, attention, False
        case "internlm2":
            attention = fields.flag("bias")  # wqkv and wo; its MLP never has one
            return attention, attention, False
        case "internlm3":
            rest = fields.flag("bias")
            return fields.flag("qkv_bias"), rest, rest
    return False, False, False


def _sliding_windows(family: str, fields: _Fields, num_layers: int) -> tuple[int, ...]:
    if family not in ("mistral", "qwen2", "qwen3"):
        return (0,) * num_layers
    window = fields.optional_size("sliding_window")
    if family != "mistral" and not fields.flag("use_sliding_window"):
        window = None  # Qwen ships a number there even when it is not to be used
    kinds = fields.get("layer_types")
    if kinds is None:
        first = 0 if family == "mistral" else _whole(fields.get("max_window_layers"), "max_window_layers", 0)
        return tuple(window or 0 if layer >= first else 0 for layer in range(num_layers))
    if not isinstance(kinds, list | tuple) or len(kinds) != num_layers:
        raise ConfigError(f"layer_types={kinds!r} must be a list of num_hidden_layers={num_layers} entries")
    windows = []
    for layer, kind in enumerate(kinds):
        if kind not in ("full_attention", "sliding_attention"):
            raise ConfigError(f"layer_types[{layer}]={kind!r} must be 'full_attention' or 'sliding_attention'")
        if kind == "sliding_attention" and window is None:
            raise ConfigError(f"layer_types[{layer}]={kind!r} needs sliding_window (and use_sliding_window: true)")
        windows.append(window or 0 if kind == "sliding_attention" else 0)
    return tuple(windows)


def _eos_token_ids(fields: _Fields) -> tuple[int, ...]:
    value = fields.get("eos_token_id")
    if value is None:
        return ()
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(_whole(token, "eos_token_id", 0) for token in values)


def _dtype(cfg: Mapping[str, Any]) -> str:
    key = "dtype" if cfg.get("dtype") is not None else "torch_dtype"
    value = cfg.get(key)
    if value is None:
        return "float32"  # what torch makes of a checkpoint that does not say
    name = str(value).removeprefix("torch.")
    if name not in DTYPES:
        raise ConfigError(f"{key}={value!r} is not supported; it must be one of {', '.join(DTYPES)}")
    return name


def _own_flag(cfg: Mapping[str, Any], key: str) -> bool:
    section = cfg.get(OWN_SECTION, {})
    if not isinstance(section, Mapping):
        raise ConfigError(f"{OWN_SECTION}={section!r} must be an object")
    value = section.get(key, False)
    if not isinstance(value, bool):
        raise ConfigError(f"{OWN_SECTION}.{key}={value!r} must be true or false")
    return value


def _quantization(cfg: Mapping[str, Any]) -> "QuantizationConfig | None":
    section = cfg.get("quantization_config") or cfg.get("compression_config")  # older compressed-tensors' name
    if not section:
        return None
    from jaxdeploy.config.quantization import QuantizationConfig

    return QuantizationConfig.from_hf(section)
