"""Loading holds one tensor at a time on the host."""

import json
import tracemalloc
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from support.quantized_checkpoints import QUANTIZATIONS
from support.tiny_checkpoints import CASES

from jaxdeploy.weights.awq_layout import AwqLayout
from jaxdeploy.weights.checkpoint import open_checkpoint
from jaxdeploy.weights.int4_matrix import Int4Matrix
from jaxdeploy.weights.loader import load_parameters
from jaxdeploy.weights.safetensors_writer import write_safetensors


def deep_checkpoint(directory: Path, layers: int, layout: AwqLayout | None) -> int:
    """A checkpoint of many layers of 512 x 1024; returns its bytes. Dense ones are InternLM2, whose wqkv is copied."""
    d, f, v, total = 512, 1024, 128, 0
    config = {**CASES["llama2"], "num_hidden_layers": layers, "hidden_size": d, "intermediate_size": f, "vocab_size": v}
    config |= {"torch_dtype": "bfloat16", "num_attention_heads": 8, "num_key_value_heads": 8}

    def weights():
        zeros = np.zeros((3 * d, f), ml_dtypes.bfloat16)
        yield "model.tok_embeddings.weight", zeros[:v, :d]
        yield "output.weight", zeros[:v, :d]
        yield "model.norm.weight", zeros[0, :d]
        shapes = {"attention.wqkv": (3 * d, d), "attention.wo": (d, d), "feed_forward.w1": (f, d)}
        shapes |= {"feed_forward.w3": (f, d), "feed_forward.w2": (d, f)}
        for layer in range(layers):
            prefix = f"model.layers.{layer}."
            yield prefix + "attention_norm.weight", zeros[0, :d]
            yield prefix + "ffn_norm.weight", zeros[0, :d]
            for module, (rows, columns) in shapes.items():
                if layout is None:
                    yield f"{prefix}{module}.weight", zeros[:rows, :columns]
                    continue
                packed = np.zeros((rows, columns // 2), np.uint8)
                zero = np.zeros((columns // 64, rows), np.uint8)
                yield from layout.write(Int4Matrix(packed, zero, zero.astype(np.float16)), prefix + module)

    config |= {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False}
    if layout is not None:
        config["quantization_config"] = {**QUANTIZATIONS["awq"], "group_size": 64}

    def counted():
        nonlocal total
        for name, value in weights():
            total += value.nbytes
            yield name, value

    write_safetensors(directory, counted())
    (directory / "config.json").write_text(json.dumps(config))
    return total


@pytest.mark.parametrize("layout", [None, AwqLayout(64)], ids=["dense", "awq"])
def test_host_memory_stays_close_to_one_tensor(layout, tmp_path):
    total = deep_checkpoint(tmp_path, 16, layout)
    checkpoint = open_checkpoint(tmp_path)
    load_parameters(checkpoint, "bfloat16")  # compiles
    tracemalloc.start()
    try:
        params = load_parameters(checkpoint, "bfloat16")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(array.nbytes for array in jax.tree.leaves(params)) > 0.9 * total
    # The largest matrix has 1536 x 512 values; unpacked, joined and packed copies of it, and the trace of the model.
    assert peak < 6 * 1536 * 512 + 1_000_000
    assert peak < total / 3
