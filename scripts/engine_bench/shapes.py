"""Models of real shape with random weights."""

import json

from jaxdeploy.config.model import ModelConfig
from jaxdeploy.text.tokenizer import Tokenizer

_LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5}
_INTERNLM2 = {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "rms_norm_eps": 1e-5, "bias": False}
SHAPES = {
    "tiny": _LLAMA | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
                      "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 4096},
    # SmolLM2-135M's sizes: what a CPU can run.
    "smollm2-135m": _LLAMA | {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
                              "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
                              "max_position_embeddings": 8192, "tie_word_embeddings": True},
    "llama-3-8b": _LLAMA | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
                            "max_position_embeddings": 8192, "rope_theta": 500000.0},
    "internlm2.5-1.8b": _INTERNLM2 | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
                                      "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 92544,
                                      "max_position_embeddings": 32768, "rope_theta": 1000000.0,
                                      "rope_scaling": {"type": "dynamic", "factor": 2.0}},
}  # fmt: skip
WEIGHTS = ("bf16", "fp16", "fp32", "w4a16")
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "w4a16": "bfloat16"}


def model_config(shape: str, weights: str = "bf16", *, group_size: int = 128) -> ModelConfig:
    """The configuration of a shape.

    Args:
        shape: one of SHAPES.
        weights: dense in one of three dtypes, or ``w4a16``: AWQ's int4 with activations in bfloat16.
        group_size: inputs that share a scale, where the weights are int4.
    """
    config = SHAPES[shape] | {"dtype": _DTYPES[weights]}
    if weights == "w4a16":
        awq = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": group_size, "zero_point": True}
        config |= {"quantization_config": awq}
    return ModelConfig.from_hf(json.loads(json.dumps(config)))


class SilentTokenizer(Tokenizer):
    """Random weights say nothing: every token is an empty text, none ends an answer."""

    bos_id = bos_token = eos_token = chat_template = None
    eos_ids = prefix_ids = suffix_ids = ()
    special_ids: frozenset[int] = frozenset()

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size
        self.special_tokens: dict[str, int] = {}

    def token_bytes(self, token: int) -> bytes:
        """Nothing."""
        return b""

    def token_to_id(self, token: str) -> int | None:
        """No token has a name."""
        return None

    def id_to_token(self, token: int) -> str | None:
        """No token has a name."""
        return None

    def _encode(self, text: str) -> list[int]:
        return []

    def _drops_leading_space(self, previous: int | None) -> bool:
        return False
