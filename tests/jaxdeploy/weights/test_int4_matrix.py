import numpy as np
import pytest

from jaxdeploy.errors import CheckpointError
from jaxdeploy.weights.int4_matrix import Int4Matrix
from jaxdeploy.weights.quant_tensor import QuantTensor


def random_matrix(seed, n=6, k=16, group=8, perm=False, dtype=np.float16):
    rng = np.random.default_rng(seed)
    return Int4Matrix(
        packed=rng.integers(0, 256, (n, k // 2), np.uint8),
        zero=rng.integers(0, 16, (k // group, n), np.uint8),
        scale=rng.uniform(0.1, 1, (k // group, n)).astype(dtype),
        perm=np.random.default_rng(0).permutation(k).astype(np.int32) if perm else None,
    )


def assert_equal(a, b):
    for field in ("packed", "zero", "scale"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), strict=True)
    assert (a.perm is None) == (b.perm is None)
    if a.perm is not None:
        np.testing.assert_array_equal(a.perm, b.perm, strict=True)


@pytest.mark.parametrize("perm", [False, True])
def test_outputs_are_merged_and_split(perm):
    parts = [random_matrix(seed, n, perm=perm) for seed, n in enumerate((4, 2, 6))]
    merged = Int4Matrix.concat_outputs(parts, ["q", "k", "v"])
    assert (merged.out_features, merged.in_features, merged.group_size) == (12, 16, 8)
    np.testing.assert_array_equal(merged.dequantize(), np.concatenate([part.dequantize() for part in parts]))
    for part, again in zip(parts, merged.split_outputs([4, 2, 6]), strict=True):
        assert_equal(part, again)
    with pytest.raises(ValueError, match=r"sizes=\[4, 2\] add up to 6, expected 12"):
        merged.split_outputs([4, 2])


@pytest.mark.parametrize("perm", [False, True])
def test_outputs_are_reordered(perm):
    matrix = random_matrix(3, perm=perm)
    index = np.array([5, 0, 0, 3])
    np.testing.assert_array_equal(matrix.take_outputs(index).dequantize(), matrix.dequantize()[index])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (random_matrix(1, perm=True), r"layers.0.q and layers.0.k read the same inputs .* act-order"),
        (random_matrix(1, k=32), "layers.0.q has in_features 16, layers.0.k has 32"),
        (random_matrix(1, group=16), "layers.0.q has group_size 8, layers.0.k has 16"),
        (random_matrix(1, dtype=np.float32), "layers.0.q has scale dtype float16, layers.0.k has float32"),
    ],
)
def test_matrices_that_do_not_fit_are_named(other, message):
    with pytest.raises(CheckpointError, match=message):
        Int4Matrix.concat_outputs([random_matrix(0), other], ["layers.0.q", "layers.0.k"])


def test_different_act_orders_are_named():
    a, b = random_matrix(0, perm=True), random_matrix(1, perm=True)
    b.perm[:] = b.perm[::-1].copy()
    with pytest.raises(CheckpointError, match="up and gate read the same inputs"):
        Int4Matrix.concat_outputs([a, b], ["up", "gate"])


@pytest.mark.parametrize("perm", [False, True])
def test_the_arrays_are_those_of_quant_tensor(perm):
    matrix = random_matrix(4, perm=perm, dtype=np.float32)
    tensor = QuantTensor(matrix.packed, matrix.scale, matrix.zero, matrix.perm, group_size=matrix.group_size)
    assert (tensor.in_features, tensor.out_features) == (matrix.in_features, matrix.out_features)
    np.testing.assert_array_equal(np.asarray(tensor.dequantize()), matrix.dequantize())
