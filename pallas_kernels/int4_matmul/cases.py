"""Real shapes of the int4 matmul: what tests lower, tuning sweeps and benchmarks time."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Int4MatmulCase:
    """One matrix of a real model: K inputs, N outputs."""

    model: str
    name: str
    k: int
    n: int
    group_size: int = 128


CASES = (
    Int4MatmulCase("smollm2-135m", "qkv", 576, 960, group_size=64),
    Int4MatmulCase("smollm2-135m", "gate_up", 576, 3072, group_size=64),
    Int4MatmulCase("smollm2-135m", "down", 1536, 576),
    Int4MatmulCase("internlm2.5-1.8b", "qkv", 2048, 4096),
    Int4MatmulCase("internlm2.5-1.8b", "gate_up", 2048, 16384),
    Int4MatmulCase("internlm2.5-1.8b", "down", 8192, 2048),
    Int4MatmulCase("llama-3-8b", "qkv", 4096, 6144),
    Int4MatmulCase("llama-3-8b", "out", 4096, 4096),
    Int4MatmulCase("llama-3-8b", "gate_up", 4096, 28672),
    Int4MatmulCase("llama-3-8b", "down", 14336, 4096),
    Int4MatmulCase("qwen2.5-7b", "down", 18944, 3584),
)
