"""Real shapes of paged attention: what tests lower, tuning sweeps and benchmarks time."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AttentionCase:
    """Heads of a real model and how its cache is stored."""

    model: str
    heads: int
    kv_heads: int
    head_dim: int
    bits: int = 16
    page_size: int = 64


_HEADS = (
    ("smollm2-135m", 9, 3, 64),
    ("internlm2.5-1.8b", 16, 8, 128),
    ("llama-3-8b", 32, 8, 128),
    ("llama-2-7b", 32, 32, 128),
    ("qwen2.5-7b", 28, 4, 128),
    ("phi-3-mini", 32, 32, 96),
    ("gemma-2-9b", 16, 8, 256),
)
CASES = tuple(AttentionCase(*heads, bits=bits) for heads in _HEADS for bits in (16, 8, 4))
MAX_QUERIES = (2, 4, 8)
"""Query tokens of a row in a step that checks drafts: one more than a draft has."""
