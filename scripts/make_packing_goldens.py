"""Writes tests/goldens/packing.npz: int4 matrices packed by AutoAWQ's and by AutoGPTQ's own code.

Needs torch (CPU), transformers, numpy and a checkout of each project, not jaxdeploy, so run it in an environment of its own:

    python -m venv goldens-env && goldens-env/bin/pip install torch transformers numpy
    git clone https://github.com/casper-hansen/AutoAWQ          # made with 88e4c76b20755db275574e6a03c83c84ba3bece5
    git clone https://github.com/AutoGPTQ/AutoGPTQ              # made with 9f7d37072917ab3a7545835f23e808294a542153
    goldens-env/bin/python scripts/make_packing_goldens.py --autoawq AutoAWQ --autogptq AutoGPTQ

For each of "awq", "gptq" and "gptq_act_order", with N outputs, K inputs and groups of G (a case's name stands in front):

    q        uint8 [N, K]     what the packed matrix holds
    zero     uint8 [K/G, N]   zero points; 1..15 for GPTQ, which stores them less one
    scale    float16 [K/G, N]
    g_idx    int32 [K]        group of each input (GPTQ)
    qweight, qzeros, scales   as the project's linear module holds them after packing

Both projects pack float weights, which they divide by the scales again; ``(q - zero) * scale`` with scales that are powers of
two comes back exactly. Their modules are loaded without the packages around them, which need a GPU's libraries.
"""

import argparse
import importlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).resolve().parents[1]
OUTPUTS, INPUTS, GROUP = 64, 96, 32


def load(checkout: Path, package: str, module: str, stand_ins: dict[str, dict[str, Any]]) -> Any:
    """Import one module of a checkout; packages on the way to it are empty, and ``stand_ins`` replace what it can't import."""
    parts = module.split(".")
    for depth in range(len(parts)):
        name = ".".join([package, *parts[:depth]])
        folder = types.ModuleType(name)
        folder.__path__ = [str(checkout.joinpath(package, *parts[:depth]))]
        sys.modules[name] = folder
    for name, content in stand_ins.items():
        stand_in = types.ModuleType(name)
        stand_in.__dict__.update(content)
        sys.modules[name] = stand_in
    return importlib.import_module(f"{package}.{module}")


def random_matrix(seed: int, lowest_zero: int, g_idx: np.ndarray) -> tuple[dict[str, np.ndarray], torch.nn.Linear]:
    random = np.random.RandomState(seed)
    q = random.randint(0, 16, (OUTPUTS, INPUTS)).astype(np.uint8)
    zero = random.randint(lowest_zero, 16, (INPUTS // GROUP, OUTPUTS)).astype(np.uint8)
    zero[0, :2] = lowest_zero, 15
    scale = (2.0 ** random.randint(-9, -4, zero.shape)).astype(np.float16)
    weight = (q - zero[g_idx].T.astype(np.float32)) * scale[g_idx].T.astype(np.float32)
    linear = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
    linear.weight.data = torch.from_numpy(weight.astype(np.float32))
    return {"q": q, "zero": zero, "scale": scale}, linear


def in_order() -> np.ndarray:
    return np.repeat(np.arange(INPUTS // GROUP, dtype=np.int32), GROUP)


def make_awq(checkout: Path) -> dict[str, np.ndarray]:
    stand_ins = {
        "awq.utils": {"__path__": [str(checkout / "awq" / "utils")]},
        "awq.utils.utils": {"get_best_device": lambda: "cpu"},
    }
    gemm = load(checkout, "awq", "modules.linear.gemm", stand_ins)
    case, linear = random_matrix(0, 0, in_order())
    scales, zeros = torch.from_numpy(case["scale"]).float(), torch.from_numpy(case["zero"]).float()
    packed = gemm.WQLinear_GEMM.from_linear(linear, 4, GROUP, scales=scales, zeros=zeros)
    return {**case, **buffers(packed)}


def make_gptq(checkout: Path, act_order: bool) -> dict[str, np.ndarray]:
    stand_ins = {
        "auto_gptq.nn_modules.triton_utils": {"__path__": []},
        "auto_gptq.nn_modules.triton_utils.mixin": {"TritonModuleMixin": type("TritonModuleMixin", (), {})},
    }
    module = load(checkout, "auto_gptq", "nn_modules.qlinear.qlinear_tritonv2", stand_ins)
    g_idx = np.random.RandomState(9).permutation(in_order()) if act_order else in_order()
    case, linear = random_matrix(1 + act_order, 1, g_idx)
    packed = module.QuantLinear(4, GROUP, INPUTS, OUTPUTS, False)
    # AutoGPTQ takes scales and zeros by output.
    scales, zeros = (
        torch.from_numpy(case["scale"].T.astype(np.float32)),
        torch.from_numpy(case["zero"].T.astype(np.float32)),
    )
    packed.pack(linear, scales.clone(), zeros.clone(), torch.from_numpy(g_idx))
    return {**case, **buffers(packed), "g_idx": packed.g_idx.numpy().astype(np.int32)}


def buffers(module: Any) -> dict[str, np.ndarray]:
    return {name: getattr(module, name).numpy() for name in ("qweight", "qzeros", "scales")}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--autoawq", type=Path, required=True, help="checkout of AutoAWQ")
    parser.add_argument("--autogptq", type=Path, required=True, help="checkout of AutoGPTQ")
    parser.add_argument("--output", type=Path, default=ROOT / "tests" / "goldens" / "packing.npz")
    args = parser.parse_args()
    cases = {
        "awq": make_awq(args.autoawq),
        "gptq": make_gptq(args.autogptq, act_order=False),
        "gptq_act_order": make_gptq(args.autogptq, act_order=True),
    }
    arrays = {f"{case}.{name}": array for case, parts in cases.items() for name, array in parts.items()}
    np.savez_compressed(args.output, **arrays)  # pyright: ignore[reportArgumentType]
    for name, array in arrays.items():
        print(f"{name:28s} {array.dtype} {array.shape}")


if __name__ == "__main__":
    main()
