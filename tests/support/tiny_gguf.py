"""Tiny GGUF files, written by the gguf package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from gguf.constants import GGMLQuantizationType

Tensors = Mapping[str, np.ndarray | tuple[np.ndarray, GGMLQuantizationType]]


def write_gguf(path: Path, architecture: str, fields: Mapping[str, Any], tensors: Tensors) -> Path:
    """Keys get the architecture in front unless they begin with tokenizer, general or split; tensors are float arrays,
    or pairs of bytes and type.
    """
    writer = GGUFWriter(path, architecture)
    for key, value in fields.items():
        name = key if key.startswith(("tokenizer.", "general.", "split.")) else f"{architecture}.{key}"
        match value:
            case bool():
                writer.add_bool(name, value)
            case int():
                writer.add_uint32(name, value)
            case float():
                writer.add_float32(name, value)
            case str():
                writer.add_string(name, value)
            case _:
                writer.add_array(name, value)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            writer.add_tensor(name, tensor[0], raw_dtype=tensor[1])
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny_fields(**changes: Any) -> dict[str, Any]:
    """Metadata of a decoder with 2 layers, 4 query heads of 8 and 2 KV heads; keys of ``changes`` as in the file."""
    fields: dict[str, Any] = {
        "block_count": 2,
        "context_length": 64,
        "embedding_length": 32,
        "feed_forward_length": 48,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 5000.0,
        "rope.dimension_count": 8,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    return fields | changes


def tiny_tensors(seed: int = 0, bias: bool = False, qk_norm: bool = False, head: bool = True) -> dict[str, np.ndarray]:
    """Float32 tensors for ``tiny_fields``, by their GGUF names."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (50, 32), "output_norm.weight": (32,)}
    if head:
        shapes["output.weight"] = (50, 32)
    for layer in range(2):
        block = {
            "attn_norm.weight": (32,),
            "attn_q.weight": (32, 32),
            "attn_k.weight": (16, 32),
            "attn_v.weight": (16, 32),
            "attn_output.weight": (32, 32),
            "ffn_norm.weight": (32,),
            "ffn_gate.weight": (48, 32),
            "ffn_up.weight": (48, 32),
            "ffn_down.weight": (32, 48),
        }
        if bias:
            block |= {"attn_q.bias": (32,), "attn_k.bias": (16,), "attn_v.bias": (16,)}
        if qk_norm:
            block |= {"attn_q_norm.weight": (8,), "attn_k_norm.weight": (8,)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
