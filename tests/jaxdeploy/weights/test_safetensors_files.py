import gc
import json
import struct
import sys
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdeploy.errors import CheckpointError
from jaxdeploy.weights.safetensors_files import DTYPES, SafetensorsFiles


def write_raw(path, header, data=b""):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write_index(directory, weight_map):
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_a_single_file_of_the_library_reads_back(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "matrix": rng.standard_normal((3, 5), np.float32),
        "half": rng.standard_normal(7).astype(np.float16),
        "words": rng.integers(-(2**31), 2**31, (2, 2), np.int32),
        "scalar": np.array(3, np.int64),
        "empty": np.zeros((0, 4), np.float32),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    source = SafetensorsFiles(tmp_path)
    assert sorted(source.names()) == sorted(tensors)
    for name, expected in tensors.items():
        found = source.read(name)
        info = source.info(name)
        assert (info.dtype, info.shape, info.nbytes) == (expected.dtype, expected.shape, expected.nbytes)
        assert info.file == tmp_path / "model.safetensors"
        np.testing.assert_array_equal(found, expected, strict=True)


def test_bfloat16_is_read_bit_for_bit_and_read_only(tmp_path):
    bits = np.array([[0x3F80, 0xC000], [0x7F80, 0x0001]], np.uint16)  # 1, -2, infinity, a subnormal
    write_raw(tmp_path / "model.safetensors", {"w": entry("BF16", [2, 2], 0, 8)}, bits.tobytes())
    w = SafetensorsFiles(tmp_path).read("w")
    assert w.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(w.view(np.uint16), bits)
    assert w[0].astype(np.float32).tolist() == [1.0, -2.0]
    assert not w.flags.writeable


@pytest.mark.parametrize("name", DTYPES)
def test_every_listed_dtype_has_its_size(tmp_path, name):
    dtype = DTYPES[name]
    data = np.arange(3).astype(dtype)
    write_raw(tmp_path / "model.safetensors", {"x": entry(name, [3], 0, 3 * dtype.itemsize)}, data.tobytes())
    np.testing.assert_array_equal(SafetensorsFiles(tmp_path).read("x"), data, strict=True)


def test_shards_of_an_index_and_files_of_any_name(tmp_path):
    indexed, loose = tmp_path / "indexed", tmp_path / "loose"
    for directory in (indexed, loose):
        directory.mkdir()
        save_file({"a": np.zeros(2, np.float32)}, directory / "part-1.safetensors")
        save_file({"b": np.ones(3, np.float32)}, directory / "part-2.safetensors")
    write_index(indexed, {"a": "part-1.safetensors", "b": "part-2.safetensors"})
    for directory in (indexed, loose):
        source = SafetensorsFiles(directory)
        assert source.names() == ("a", "b")
        assert source.info("b").file.name == "part-2.safetensors"
        assert source.read("b").tolist() == [1, 1, 1]


def test_views_outlive_close_but_reading_does_not(tmp_path):
    save_file({"a": np.arange(4, dtype=np.float32)}, tmp_path / "model.safetensors")
    source = SafetensorsFiles(tmp_path)
    view = source.read("a")
    source.close()
    gc.collect()
    assert view.tolist() == [0, 1, 2, 3]
    with pytest.raises(CheckpointError, match=r"'a' was read after close"):
        source.read("a")


def test_a_missing_tensor_is_named(tmp_path):
    save_file({"a": np.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor 'b' is missing; 1 others"):
        SafetensorsFiles(tmp_path).info("b")


@pytest.mark.parametrize("kept", [4, 12, -60, -1])
def test_a_truncated_file_says_so(tmp_path, kept):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(8, np.float32), "b": np.zeros(16, np.float32)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: (truncated|4 bytes is too short)") as error:
        SafetensorsFiles(tmp_path)
    if kept == -1:
        assert "tensor 'b' needs 64 bytes, found 63" in str(error.value)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"\x80\x02K", b"", "the header is not valid"),
        (b'{"a":1', b"", "the header is not valid"),
        (b"[1]", b"", "a JSON list, expected an object"),
        (b'{"a":{},"a":{}}', b"", "'a' is listed twice"),
        (b'{"a":3}', b"", r"'a' has data_offsets None"),
        ({"a": entry("F32", [2], 0, 4)}, bytes(4), r"'a' has 4 bytes, expected 8 for F32 \[2\]"),
        ({"a": entry("F32", [2], 8, 0)}, bytes(8), r"expected 0 <= begin <= end"),
        ({"a": entry("F32", [2], 4, 12)}, bytes(12), "begins at data byte 4, expected 0"),
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, bytes(12), "'b' begins at data byte 4"),
        ({"a": entry("F32", [-2], 0, 8)}, bytes(8), r"'a' has shape \[-2\]"),
        ({"a": entry("F32", "2", 0, 8)}, bytes(8), "'a' has shape '2'"),
        ({"a": entry("F8_E4M3", [2], 0, 2)}, bytes(2), "'a' has unsupported dtype 'F8_E4M3'; supported: F64"),
        ({"a": entry("F32", [2], 0, 8)}, bytes(11), r"expected \d+ bytes from the header, found \d+"),
    ],
)
def test_an_inconsistent_header_is_refused(tmp_path, header, data, message):
    write_raw(tmp_path / "model.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message) as error:
        SafetensorsFiles(tmp_path)
    assert "model.safetensors" in str(error.value)


@pytest.mark.parametrize("length", [0, 2**40, 2**63])
def test_a_senseless_header_length_is_refused(tmp_path, length):
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}" + bytes(30))
    with pytest.raises(CheckpointError, match=f"header length {length} is not between"):
        SafetensorsFiles(tmp_path)


def test_an_index_is_checked_against_its_shards(tmp_path):
    save_file({"a": np.zeros(2)}, tmp_path / "one.safetensors")
    save_file({"b": np.zeros(2)}, tmp_path / "two.safetensors")
    write_index(tmp_path, {"a": "one.safetensors", "b": "three.safetensors"})
    with pytest.raises(CheckpointError, match=r"shard three\.safetensors is missing; it holds 1 tensors, 'b'"):
        SafetensorsFiles(tmp_path)
    write_index(tmp_path, {"a": "one.safetensors", "c": "two.safetensors"})
    with pytest.raises(CheckpointError, match=r"'c' is expected in two\.safetensors, found in no shard"):
        SafetensorsFiles(tmp_path)
    write_index(tmp_path, {"a": "two.safetensors", "b": "one.safetensors"})
    with pytest.raises(CheckpointError, match=r"'a' is expected in two\.safetensors, found in one\.safetensors"):
        SafetensorsFiles(tmp_path)
    write_index(tmp_path, {"a": "../one.safetensors"})
    with pytest.raises(CheckpointError, match="must be a file name without a folder"):
        SafetensorsFiles(tmp_path)
    write_index(tmp_path, {})
    with pytest.raises(CheckpointError, match='non-empty "weight_map"'):
        SafetensorsFiles(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    save_file({"a": np.zeros(2)}, tmp_path / "one.safetensors")
    save_file({"a": np.zeros(2)}, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"two\.safetensors: tensor 'a' is also in one\.safetensors"):
        SafetensorsFiles(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "model.pth"])
def test_pickles_are_refused_with_the_way_to_convert(tmp_path, name):
    (tmp_path / name).write_bytes(b"never opened")
    with pytest.raises(CheckpointError, match=r"never read here.*save_pretrained") as error:
        SafetensorsFiles(tmp_path)
    assert name in str(error.value)


def test_an_empty_or_missing_directory_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        SafetensorsFiles(tmp_path)
    with pytest.raises(CheckpointError, match="not a directory"):
        SafetensorsFiles(tmp_path / "missing")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: can't be read"):
        SafetensorsFiles(tmp_path)


def test_reading_tensor_by_tensor_allocates_about_one_tensor(tmp_path):
    layers, shape = 64, (128, 256)
    save_file({f"layers.{i}.w": np.full(shape, i, np.float32) for i in range(layers)}, tmp_path / "model.safetensors")
    one = 128 * 256 * 4
    tracemalloc.start()
    try:
        source = SafetensorsFiles(tmp_path)
        total = 0.0
        for name in source.names():
            total += float(np.array(source.read(name))[0, 0])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == layers * (layers - 1) / 2
    assert one <= peak < 2 * one + 200_000  # the copy, and the list of tensors


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident size of mapped files from /proc")
def test_pages_of_a_tensor_are_released_by_the_next_read(tmp_path):
    layers, size = 24, 1 << 20
    save_file({f"w{i:02d}": np.full(size, i, np.uint8) for i in range(layers)}, tmp_path / "model.safetensors")

    def resident_file_bytes():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssFile"))

    source = SafetensorsFiles(tmp_path)
    before, most, views = resident_file_bytes(), 0, []
    for name in source.names():
        views.append(source.read(name))
        views[-1].sum()
        most = max(most, resident_file_bytes() - before)
    assert most < 8 * size
    assert [int(view[-1]) for view in views] == list(range(layers))
