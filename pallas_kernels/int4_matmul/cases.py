"""Real shapes of the int4 matmul: what tests lower, tuning sweeps and benchmarks time."""

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32

from pallas_kernels.int4_matmul.tiles import groups_per_tile, padded


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
"""What CI lowers: every kind of shape once."""


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """The sizes of a model that its matrices follow from."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int


MODELS = (
    ModelSizes("llama-3-8b", 4096, 32, 8, 128, 14336),
    ModelSizes("llama-3-70b", 8192, 64, 8, 128, 28672),
    ModelSizes("internlm2.5-1.8b", 2048, 16, 8, 128, 8192),
    ModelSizes("internlm2.5-7b", 4096, 32, 8, 128, 14336),
    ModelSizes("internlm2.5-20b", 6144, 48, 8, 128, 16384),
    ModelSizes("qwen2.5-0.5b", 896, 14, 2, 64, 4864),
    ModelSizes("qwen2.5-1.5b", 1536, 12, 2, 128, 8960),
    ModelSizes("qwen2.5-3b", 2048, 16, 2, 128, 11008),
    ModelSizes("qwen2.5-7b", 3584, 28, 4, 128, 18944),
    ModelSizes("qwen2.5-14b", 5120, 40, 8, 128, 13824),
    ModelSizes("qwen2.5-32b", 5120, 40, 8, 128, 27648),
    ModelSizes("qwen2.5-72b", 8192, 64, 8, 128, 29568),
    ModelSizes("mistral-7b", 4096, 32, 8, 128, 14336),
)


def cases_of(model: ModelSizes, *, shards: int = 1) -> Iterator[Int4MatmulCase]:
    """The four matrices of a layer, of one of ``shards`` GPUs.

    The joined ones are cut along the outputs, the others along the inputs; a model that can't be cut so has no cases.
    """
    if model.heads % shards or model.kv_heads % shards or model.ffn % shards:
        return
    joined = (model.heads + 2 * model.kv_heads) * model.head_dim // shards
    inner, ffn = model.heads * model.head_dim // shards, model.ffn // shards
    for name, k, n in (
        ("qkv", model.hidden, joined),
        ("out", inner, model.hidden),
        ("gate_up", model.hidden, 2 * ffn),
        ("down", ffn, model.hidden),
    ):
        # Groups of 128 are the rule; where they don't divide the inputs, the largest power of two that does.
        group_size = next(g for g in (128, 64, 32, 16) if k % g == 0)
        yield Int4MatmulCase(model.name, name if shards == 1 else f"{name}/{shards}", k, n, group_size)


def all_cases(shards: tuple[int, ...] = (1, 2, 4)) -> list[Int4MatmulCase]:
    """Every matrix of every model at every degree of tensor parallelism, each shape once."""
    found = {(c.k, c.n, c.group_size): c for s in shards for model in MODELS for c in cases_of(model, shards=s)}
    return list(found.values())


def random_tiles(
    layers: int, n: int, k: int, group_size: int
) -> tuple[Int32[Array, "L Ns Kb 256"], Int32[Array, "L Ns Kb Gt 16"]]:
    """A stack to measure with: any nibbles, scales around 0.02, zero points over all of 0..15."""
    outputs, inputs = padded(n, k)
    keys = jax.random.split(jax.random.key(n + k), 3)
    bits = jax.random.bits(keys[0], (layers, outputs // 16, inputs // 128, 256), jnp.uint32)
    shape = (layers, outputs // 16, inputs // 128, groups_per_tile(group_size), 16)
    scale = jax.random.uniform(keys[1], shape, jnp.bfloat16, 0.01, 0.03).astype(jnp.float32)
    zero = jax.random.randint(keys[2], shape, 0, 16, jnp.int32)
    meta = jax.lax.bitcast_convert_type(scale, jnp.int32) | zero
    return jax.lax.bitcast_convert_type(bits, jnp.int32), meta
