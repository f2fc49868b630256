"""Tiny random int4 checkpoints: the cases of ``tiny_checkpoints`` with every linear module of the layers packed."""

import json
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from support.tiny_checkpoints import CASES, tensors

from jaxdeploy.config.quantization import QuantizationConfig
from jaxdeploy.weights.int4_layouts import Int4Layout, int4_layout
from jaxdeploy.weights.int4_matrix import Int4Matrix
from jaxdeploy.weights.safetensors_writer import write_safetensors

GROUP = 16
_AWQ = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": GROUP, "zero_point": True}
_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False, "desc_act": False}


def _compressed(symmetric: bool, **weights: Any) -> dict[str, Any]:
    scheme = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP, "symmetric": symmetric, **weights}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme, "input_activations": None}},
        "ignore": ["lm_head"],
    }


QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "awq": _AWQ,
    "gptq_v1": _GPTQ,
    "gptq_v2": {**_GPTQ, "checkpoint_format": "gptq_v2"},
    "gptq_act_order": {**_GPTQ, "desc_act": True},
    "compressed_symmetric": _compressed(True),
    "compressed_act_order": _compressed(False, actorder="group"),
}


def layout_of(quantization: str) -> Int4Layout:
    """The layout of one of QUANTIZATIONS."""
    return int4_layout(QuantizationConfig.from_hf(QUANTIZATIONS[quantization]), ["x.g_idx"])


def write_quantized(
    case: str,
    quantization: str,
    directory: Path,
    *,
    changes: dict[str, Any] | None = None,
    shard_bytes: int = 40_000,
) -> tuple[dict[str, np.ndarray], dict[str, Int4Matrix]]:
    """Write the checkpoint; returns its tensors by name, and the int4 matrices by the family's own module names."""
    section = {**QUANTIZATIONS[quantization], **(changes or {})}
    config = QuantizationConfig.from_hf(section)
    written: dict[str, np.ndarray] = {}
    matrices: dict[str, Int4Matrix] = {}
    for name, value in tensors(case).items():
        module, _, tensor = name.rpartition(".")
        if tensor == "weight" and value.ndim == 2 and "layers" in name:
            matrices[module] = random_matrix(
                module, *value.shape, desc_act=config.desc_act, symmetric=not config.zero_point
            )
            written |= dict(layout_of(quantization).write(matrices[module], module))
        else:
            written[name] = value.astype(ml_dtypes.bfloat16)
    directory.mkdir(parents=True, exist_ok=True)
    raw = {**CASES[case], "torch_dtype": "bfloat16", "quantization_config": section}
    (directory / "config.json").write_text(json.dumps(raw, indent=2))
    write_safetensors(directory, written.items(), shard_bytes=shard_bytes)
    return written, matrices


def random_matrix(module: str, outputs: int, inputs: int, *, desc_act: bool, symmetric: bool) -> Int4Matrix:
    """Random values from the module's name. Modules of a layer that read the same inputs share one act-order."""
    random = np.random.RandomState(zlib.crc32(module.encode()))
    groups = inputs // GROUP
    zero = random.randint(1, 16, (groups, outputs)).astype(np.uint8)
    perm = None
    if desc_act:
        g_idx = np.random.RandomState(inputs).permutation(np.repeat(np.arange(groups), GROUP))
        perm = np.argsort(g_idx, kind="stable").astype(np.int32)
    return Int4Matrix(
        packed=random.randint(0, 256, (outputs, inputs // 2)).astype(np.uint8),
        zero=np.full_like(zero, 8) if symmetric else zero,
        scale=(random.rand(groups, outputs) / 8).astype(np.float16),
        perm=perm,
    )
