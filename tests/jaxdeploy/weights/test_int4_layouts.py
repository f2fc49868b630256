"""Every layout against a slow loop over single elements, written from the formats' descriptions."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.array_source import ArraySource

from jaxdeploy.config.quantization import QuantizationConfig
from jaxdeploy.errors import CheckpointError
from jaxdeploy.weights.awq_layout import AwqLayout
from jaxdeploy.weights.compressed_tensors_layout import CompressedTensorsLayout
from jaxdeploy.weights.gptq_layout import GptqLayout
from jaxdeploy.weights.int4_layouts import int4_layout

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def int32(word):
    """An unsigned 32-bit number (wrapped around) as the int32 with the same bits."""
    word %= 2**32
    return word - 2**32 if word >= 2**31 else word


class Plain:
    """q [N, K], zero [groups, N], scale [groups, N] and the group of each input: a matrix nobody has packed."""

    def __init__(self, seed, n, k, group, dtype=np.float16, order=None):
        rng = np.random.default_rng(seed)
        self.n, self.k, self.groups = n, k, k // group
        self.q = rng.integers(0, 16, (n, k), np.uint8)
        self.zero = rng.integers(0, 16, (self.groups, n), np.uint8)
        self.scale = rng.uniform(0.01, 1, (self.groups, n)).astype(dtype)
        self.g_idx = np.repeat(np.arange(self.groups, dtype=np.int32), group)
        if order is not None:
            self.g_idx = self.g_idx[np.random.default_rng(order).permutation(k)]

    def dense(self):
        w = np.empty((self.n, self.k), np.float32)
        for n in range(self.n):
            for k in range(self.k):
                g = self.g_idx[k]
                w[n, k] = (int(self.q[n, k]) - int(self.zero[g, n])) * np.float32(self.scale[g, n])
        return w

    def awq(self, module):
        def pack(values):
            words = np.empty((values.shape[0], values.shape[1] // 8), np.int32)
            for row in range(words.shape[0]):
                for c in range(words.shape[1]):
                    words[row, c] = int32(sum(int(values[row, 8 * c + AWQ_ORDER[i]]) << (4 * i) for i in range(8)))
            return words

        return [
            (f"{module}.qweight", pack(self.q.T)),
            (f"{module}.qzeros", pack(self.zero)),
            (f"{module}.scales", self.scale),
        ]

    def gptq(self, module, v2, g_idx):
        qweight = np.empty((self.k // 8, self.n), np.int32)
        for r in range(self.k // 8):
            for n in range(self.n):
                qweight[r, n] = int32(sum(int(self.q[n, 8 * r + i]) << (4 * i) for i in range(8)))
        qzeros = np.empty((self.groups, self.n // 8), np.int32)
        for g in range(self.groups):
            for c in range(self.n // 8):
                word = sum(int(self.zero[g, 8 * c + i]) << (4 * i) for i in range(8))
                qzeros[g, c] = int32(word if v2 else word - 0x11111111)
        tensors = [(f"{module}.qweight", qweight), (f"{module}.qzeros", qzeros), (f"{module}.scales", self.scale)]
        return [*tensors, (f"{module}.g_idx", self.g_idx)] if g_idx else tensors

    def compressed_tensors(self, module, symmetric, g_idx):
        """Signed values q - 8 have 8 added before they are packed, weights along K and zero points along N."""
        packed = np.empty((self.n, self.k // 8), np.int32)
        for n in range(self.n):
            for c in range(self.k // 8):
                packed[n, c] = int32(sum((int(self.q[n, 8 * c + i]) - 8 + 8) << (4 * i) for i in range(8)))
        tensors = [
            (f"{module}.weight_packed", packed),
            (f"{module}.weight_scale", np.ascontiguousarray(self.scale.T)),
            (f"{module}.weight_shape", np.array([self.n, self.k], np.int64)),
        ]
        if not symmetric:
            words = np.empty((-(-self.n // 8), self.groups), np.int32)
            for r in range(words.shape[0]):
                for g in range(self.groups):
                    rows = range(8 * r, min(8 * r + 8, self.n))
                    words[r, g] = int32(sum(int(self.zero[g, n]) << (4 * (n % 8)) for n in rows))
            tensors.append((f"{module}.weight_zero_point", words))
        return [*tensors, (f"{module}.weight_g_idx", self.g_idx)] if g_idx else tensors


def check_both_ways(layout, plain, tensors, module="m"):
    """Read equals the plain matrix, canonical form is as documented, and writing gives back every bit."""
    matrix = layout.read(ArraySource(tensors), module)
    np.testing.assert_array_equal(matrix.dequantize(), plain.dense())
    order = np.arange(plain.k) if matrix.perm is None else matrix.perm
    for n in range(plain.n):
        for j in range(plain.k // 2):
            assert matrix.packed[n, j] == plain.q[n, order[2 * j]] | plain.q[n, order[2 * j + 1]] << 4
    np.testing.assert_array_equal(matrix.zero, plain.zero, strict=True)
    np.testing.assert_array_equal(matrix.scale, plain.scale, strict=True)
    np.testing.assert_array_equal(plain.g_idx[order], np.sort(plain.g_idx))
    written = layout.write(matrix, module)
    assert [name for name, _ in written] == [f"{module}.{suffix}" for suffix in layout.suffixes]
    assert [name for name, _ in written] == [name for name, _ in tensors]
    for (name, found), (_, expected) in zip(written, tensors, strict=True):
        np.testing.assert_array_equal(found, expected, strict=True, err_msg=name)
    return matrix


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("n", "k", "group"), [(8, 16, 8), (24, 32, 16), (16, 8, 8)])
def test_awq(n, k, group, dtype):
    plain = Plain(n, n, k, group, dtype)
    assert check_both_ways(AwqLayout(group), plain, plain.awq("m")).group_size == group


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.sampled_from([8, 16]),
    groups=st.integers(1, 3),
    group=st.sampled_from([8, 16]),
    v2=st.booleans(),
    order=st.none() | st.integers(0, 1000),
)
def test_gptq(seed, n, groups, group, v2, order):
    plain = Plain(seed, n, groups * group, group, order=order)
    matrix = check_both_ways(GptqLayout(group, v2), plain, plain.gptq("m", v2, g_idx=True))
    assert (matrix.perm is None) == bool((np.diff(plain.g_idx) >= 0).all())


@pytest.mark.parametrize("v2", [False, True])
def test_gptq_without_g_idx(v2):
    plain = Plain(3, 8, 32, 16)
    layout = GptqLayout(16, v2, g_idx=False)
    assert check_both_ways(layout, plain, plain.gptq("m", v2, g_idx=False)).perm is None


def test_gptq_v1_zero_points_borrow_over_the_word():
    plain = Plain(4, 8, 8, 8)
    plain.zero[:] = [[0, 0, 1, 15, 0, 2, 0, 0]]
    tensors = plain.gptq("m", v2=False, g_idx=True)
    check_both_ways(GptqLayout(8), plain, tensors)
    # 0x0020f100 - 0x11111111, by hand
    assert tensors[1][1].view(np.uint32).tolist() == [[0xEF0FDFEF]]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 19),
    groups=st.integers(1, 3),
    group=st.sampled_from([8, 16]),
    symmetric=st.booleans(),
    order=st.none() | st.integers(0, 1000),
)
def test_compressed_tensors(seed, n, groups, group, symmetric, order):
    plain = Plain(seed, n, groups * group, group, order=order)
    if symmetric:
        plain.zero[:] = 8
    g_idx = order is not None
    layout = CompressedTensorsLayout(group, symmetric, g_idx)
    check_both_ways(layout, plain, plain.compressed_tensors("m", symmetric, g_idx))


def test_one_group_per_output():
    plain = Plain(5, 8, 24, 24)
    check_both_ways(AwqLayout(-1), plain, plain.awq("m"))
    check_both_ways(GptqLayout(-1), plain, plain.gptq("m", v2=False, g_idx=True))
    layout = CompressedTensorsLayout(-1, symmetric=False)
    assert check_both_ways(layout, plain, plain.compressed_tensors("m", False, False)).group_size == 24


def test_what_one_layout_wrote_another_can_write():
    plain = Plain(6, 16, 32, 16)
    matrix = AwqLayout(16).read(ArraySource(plain.awq("m")), "m")
    for layout, expected in (
        (GptqLayout(16), plain.gptq("x", v2=False, g_idx=True)),
        (CompressedTensorsLayout(16, symmetric=False), plain.compressed_tensors("x", False, False)),
    ):
        for (name, found), (expected_name, array) in zip(layout.write(matrix, "x"), expected, strict=True):
            assert name == expected_name
            np.testing.assert_array_equal(found, array, strict=True)


LAYOUTS = {
    "awq": (AwqLayout(16), lambda plain: plain.awq("m")),
    "gptq": (GptqLayout(16), lambda plain: plain.gptq("m", False, True)),
    "compressed-tensors": (
        CompressedTensorsLayout(16, False, True),
        lambda plain: plain.compressed_tensors("m", False, True),
    ),
}


@pytest.mark.parametrize("method", LAYOUTS)
def test_wrong_shapes_and_dtypes_are_named(method):
    layout, pack = LAYOUTS[method]
    tensors = dict(pack(Plain(7, 16, 32, 16)))
    for name, array in tensors.items():
        wrong = tensors | {name: array.astype(np.float64)}
        with pytest.raises(CheckpointError, match=rf"memory: tensor '{name}' has dtype float64, expected (int|float)"):
            layout.read(ArraySource(wrong.items()), "m")
        wrong = tensors | {name: np.concatenate([array, array])}
        with pytest.raises(CheckpointError, match=r"(has shape|is) .*, expected"):
            layout.read(ArraySource(wrong.items()), "m")
        missing = {key: value for key, value in tensors.items() if key != name}
        with pytest.raises(CheckpointError, match=f"'{name}' is missing"):
            layout.read(ArraySource(missing.items()), "m")


@pytest.mark.parametrize("method", LAYOUTS)
def test_packed_weights_must_be_a_matrix(method):
    layout, pack = LAYOUTS[method]
    tensors = dict(pack(Plain(7, 16, 32, 16)))
    name = f"m.{layout.suffixes[0]}"
    with pytest.raises(CheckpointError, match=rf"'{name}' has shape \(64,\), expected two sizes above 0"):
        layout.read(ArraySource((tensors | {name: tensors[name].reshape(-1)}).items()), "m")


def test_groups_that_do_not_divide_the_inputs_are_refused():
    plain = Plain(8, 8, 16, 16)
    with pytest.raises(CheckpointError, match=r"'m.qweight' has 16 inputs, expected a multiple of group_size=12"):
        AwqLayout(12).read(ArraySource(plain.awq("m")), "m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g_idx: np.zeros_like(g_idx), r"'m.g_idx' puts 32 inputs in group 0, expected 16 in each group"),
        (lambda g_idx: g_idx + 1, r"'m.g_idx' puts input 16 in group 2, expected 0..1"),
        (lambda g_idx: g_idx - 1, r"'m.g_idx' puts input 0 in group -1, expected 0..1"),
    ],
)
def test_groups_that_are_not_whole_are_refused(change, message):
    tensors = dict(Plain(9, 8, 32, 16).gptq("m", False, True))
    tensors["m.g_idx"] = change(tensors["m.g_idx"])
    with pytest.raises(CheckpointError, match=message):
        GptqLayout(16).read(ArraySource(tensors.items()), "m")


def test_what_a_layout_can_not_express_is_refused():
    ordered = GptqLayout(16).read(ArraySource(Plain(10, 8, 32, 16, order=1).gptq("m", False, True)), "m")
    assert ordered.perm is not None
    for layout in (AwqLayout(16), GptqLayout(16, g_idx=False), CompressedTensorsLayout(16, False)):
        with pytest.raises(CheckpointError, match=r"m: act-order columns \(perm\) can't be written"):
            layout.write(ordered, "m")
    with pytest.raises(CheckpointError, match=r"m: groups of 16 inputs can't be written as group_size=8"):
        GptqLayout(8).write(ordered, "m")
    with pytest.raises(CheckpointError, match=r"m: zero point \d+ can't be written as symmetric"):
        CompressedTensorsLayout(16, symmetric=True, g_idx=True).write(ordered, "m")
    narrow = ordered.take_outputs(np.arange(5))
    with pytest.raises(CheckpointError, match="m: 5 outputs can't be packed, expected a multiple of 8"):
        GptqLayout(16).write(narrow, "m")


def test_gptq_outputs_must_fill_words():
    tensors = [("m.qweight", np.zeros((2, 12), np.int32))]
    with pytest.raises(CheckpointError, match=r"has shape \(2, 12\), expected a second size that is a multiple of 8"):
        GptqLayout(16).read(ArraySource(tensors), "m")


def test_the_layout_follows_the_configuration():
    def layout(names=(), **section):
        return int4_layout(QuantizationConfig.from_hf(json.loads(json.dumps(section))), names)

    assert layout(quant_method="awq", bits=4, group_size=128) == AwqLayout(128)
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    assert layout(**gptq) == GptqLayout(32, v2=False, g_idx=False)
    assert layout(["m.qweight", "m.g_idx"], **gptq) == GptqLayout(32, v2=False, g_idx=True)
    assert layout(**gptq, desc_act=True, checkpoint_format="gptq_v2") == GptqLayout(32, v2=True, g_idx=True)
    weights = {"num_bits": 4, "group_size": 64, "strategy": "group", "symmetric": False, "actorder": "group"}
    section = {"format": "pack-quantized", "config_groups": {"group_0": {"weights": weights}}}
    assert layout(quant_method="compressed-tensors", **section) == CompressedTensorsLayout(64, False, True)
