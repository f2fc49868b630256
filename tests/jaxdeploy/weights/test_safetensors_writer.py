import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from jaxdeploy.errors import CheckpointError
from jaxdeploy.weights import safetensors_writer
from jaxdeploy.weights.safetensors_files import DTYPES, SafetensorsFiles
from jaxdeploy.weights.safetensors_writer import write_safetensors


def some_tensors(count=5):
    rng = np.random.default_rng(1)
    return [(f"layers.{i}.w", rng.standard_normal((4, 8), np.float32)) for i in range(count)]


def test_one_shard_reads_back_here_and_in_the_library(tmp_path):
    tensors = some_tensors()
    assert write_safetensors(tmp_path / "new", iter(tensors)) == [tmp_path / "new" / "model.safetensors"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.safetensors"]
    source = SafetensorsFiles(tmp_path / "new")
    with safe_open(tmp_path / "new" / "model.safetensors", framework="numpy") as library:
        assert library.metadata() == {"format": "pt"}
        for name, expected in tensors:
            np.testing.assert_array_equal(source.read(name), expected, strict=True)
            np.testing.assert_array_equal(library.get_tensor(name), expected, strict=True)


def test_shards_end_before_the_limit_and_have_an_index(tmp_path):
    tensors = [*some_tensors(), ("large", np.zeros(1000, np.float32)), ("last", np.zeros(1, np.float32))]
    paths = write_safetensors(tmp_path, tensors, shard_bytes=2 * 128 + 10)
    assert [path.name for path in paths] == [f"model-{i:05d}-of-00005.safetensors" for i in range(1, 6)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for _, array in tensors)
    assert list(index["weight_map"]) == [name for name, _ in tensors]
    assert index["weight_map"]["large"] == "model-00004-of-00005.safetensors"
    source = SafetensorsFiles(tmp_path)
    for name, expected in tensors:
        np.testing.assert_array_equal(source.read(name), expected, strict=True)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype_and_odd_layouts_round_trip(tmp_path, dtype):
    base = np.random.default_rng(2).integers(0, 2, (6, 4)).astype(dtype)
    tensors = {"strided": base[::2, ::-1], "transposed": base.T, "scalar": base[0, 0], "empty": base[:0]}
    tensors = {name: np.asarray(array) for name, array in tensors.items()}
    write_safetensors(tmp_path, tensors.items(), metadata={"made_by": "test"})
    source = SafetensorsFiles(tmp_path)
    for name, expected in tensors.items():
        found = source.read(name)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()


def test_a_full_header_ends_the_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_writer, "HEADER_ROOM", 256)
    paths = write_safetensors(tmp_path, some_tensors(9))
    assert len(paths) > 2
    assert sorted(SafetensorsFiles(tmp_path).names()) == sorted(name for name, _ in some_tensors(9))


def test_writing_holds_about_one_tensor(tmp_path):
    size = 1 << 20
    tracemalloc.start()
    try:
        write_safetensors(tmp_path, ((f"w{i}", np.full(size, i, np.uint8)) for i in range(16)), shard_bytes=5 * size)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size <= peak < 3 * size  # one in the writer's hands while the next is made, and the room for a header
    assert [int(SafetensorsFiles(tmp_path).read(f"w{i}")[-1]) for i in range(16)] == list(range(16))


def test_an_error_on_the_way_leaves_nothing(tmp_path):
    def produce():
        yield from some_tensors(4)
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError, match="the source failed"):
        write_safetensors(tmp_path, produce(), shard_bytes=200)
    assert list(tmp_path.iterdir()) == []


def test_what_can_not_be_written_is_refused(tmp_path):
    one = np.zeros(1, np.float32)
    with pytest.raises(CheckpointError, match="'a' was given twice"):
        write_safetensors(tmp_path, [("a", one), ("a", one)])
    with pytest.raises(CheckpointError, match="'a' has dtype float8_e4m3fn, expected one of F64"):
        write_safetensors(tmp_path, [("a", np.zeros(1, ml_dtypes.float8_e4m3fn))])
    with pytest.raises(CheckpointError, match="no tensors to write"):
        write_safetensors(tmp_path, [])
    assert list(tmp_path.iterdir()) == []
    write_safetensors(tmp_path, [("a", one)])
    with pytest.raises(CheckpointError, match=r"already holds model\.safetensors"):
        write_safetensors(tmp_path, [("b", one)])
    assert SafetensorsFiles(tmp_path).names() == ("a",)
