"""Packed tensors equal, to the bit, what AutoAWQ's and AutoGPTQ's own code packs (scripts/make_packing_goldens.py)."""

import numpy as np
import pytest
from support.array_source import ArraySource
from support.goldens import FOLDER

from jaxdeploy.lite.layer_weights import QuantizedLinear
from jaxdeploy.weights.awq_layout import AwqLayout
from jaxdeploy.weights.gptq_layout import GptqLayout

GROUP = 32
CASES = ("awq", "gptq", "gptq_act_order")


def golden(case: str) -> dict[str, np.ndarray]:
    stored = np.load(FOLDER / "packing.npz")
    return {name.removeprefix(f"{case}."): stored[name] for name in stored.files if name.startswith(f"{case}.")}


def quantized(parts: dict[str, np.ndarray]) -> QuantizedLinear:
    g_idx = parts.get("g_idx")
    perm = None
    if g_idx is not None and (np.diff(g_idx) < 0).any():
        perm = np.argsort(g_idx, kind="stable").astype(np.int32)
    q = parts["q"] if perm is None else parts["q"][:, perm]
    return QuantizedLinear(q, parts["scale"].T.astype(np.float32), parts["zero"].T, perm)


@pytest.mark.parametrize("case", CASES)
def test_same_bits_as_the_reference_packer(case: str):
    parts = golden(case)
    layout = AwqLayout(GROUP) if case == "awq" else GptqLayout(GROUP)
    written = dict(layout.write(quantized(parts).matrix(np.float16), "m"))
    for name in layout.suffixes:
        np.testing.assert_array_equal(written[f"m.{name}"], parts[name], err_msg=name)
        assert written[f"m.{name}"].dtype == parts[name].dtype


@pytest.mark.parametrize("case", CASES)
def test_the_reference_packers_tensors_read_as_the_same_matrix(case: str):
    parts = golden(case)
    layout = AwqLayout(GROUP) if case == "awq" else GptqLayout(GROUP)
    source = ArraySource((f"m.{name}", parts[name]) for name in layout.suffixes)
    g_idx = parts.get("g_idx", np.repeat(np.arange(3), GROUP))
    expected = (parts["q"] - parts["zero"][g_idx].T.astype(np.float32)) * parts["scale"][g_idx].T.astype(np.float32)
    np.testing.assert_array_equal(layout.read(source, "m").dequantize(), expected)


def slow_awq_words(values: np.ndarray) -> np.ndarray:
    """The "gemm" packing, bit by bit: column c of a row holds outputs 8c..8c+7, even ones in the low half."""
    rows, outputs = values.shape
    words = np.zeros((rows, outputs // 8), np.int64)
    for row in range(rows):
        for output in range(outputs):
            inside = output % 8
            nibble = inside // 2 if inside % 2 == 0 else 4 + inside // 2
            words[row, output // 8] |= int(values[row, output]) << (4 * nibble)
    return words.astype(np.uint32).view(np.int32)


def test_a_slow_packer_agrees():
    random = np.random.RandomState(5)
    q = random.randint(0, 16, (16, 64)).astype(np.uint8)
    zero = random.randint(0, 16, (16, 2)).astype(np.uint8)
    written = dict(
        AwqLayout(GROUP).write(QuantizedLinear(q, np.ones((16, 2), np.float32), zero).matrix(np.float16), "m")
    )
    np.testing.assert_array_equal(written["m.qweight"], slow_awq_words(q.T))
    np.testing.assert_array_equal(written["m.qzeros"], slow_awq_words(zero.T))
