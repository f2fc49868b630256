import gc
import struct
import tracemalloc
import warnings

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from support.tiny_gguf import tiny_fields, tiny_tensors, write_gguf

from jaxdeploy.errors import CheckpointError
from jaxdeploy.weights import gguf_file
from jaxdeploy.weights.gguf_file import GGUFFile
from jaxdeploy.weights.gguf_names import hf_name

T = GGMLQuantizationType
BLOCK_TYPES = [kind for kind in T if kind not in (T.F32, T.F16, T.BF16) and gguf_file._is_supported(kind)]
UNREADABLE = [T.Q8_1, T.Q8_K, T.I8, T.I16, T.I32, T.I64, T.F64]


def interleave(rows, heads):
    """llama.cpp's order of q and k rows: row i of the first half of a head, then row i of its second half."""
    size = len(rows) // heads
    order = [head * size + half * size // 2 + i for head in range(heads) for i in range(size // 2) for half in (0, 1)]
    return rows[order]


def random_blocks(kind, rows, blocks, seed=0):
    """Bytes of a type; those that a type reads as a scale may be infinite, which comparing bits allows."""
    return np.random.default_rng(seed).integers(0, 256, (rows, blocks * GGML_QUANT_SIZES[kind][1]), np.uint8)


def test_the_package_reads_the_usual_types():
    usual = {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"}
    assert usual <= {kind.name for kind in BLOCK_TYPES}


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda kind: kind.name)
def test_block_types_are_dequantized_to_float32(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(gguf_file, "_SLAB_VALUES", 1000)  # several slabs, the last one short
    values, _ = GGML_QUANT_SIZES[kind]
    blocks = random_blocks(kind, 23, 2)
    path = write_gguf(tmp_path / "x.gguf", "qwen2", tiny_fields(), {"output.weight": (blocks, kind)})
    source = GGUFFile(path)
    info = source.info("lm_head.weight")
    assert (info.dtype, info.shape, info.file) == (np.float32, (23, 2 * values), path)
    assert source.stored_type("lm_head.weight") == kind
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # random scales overflow
        found, expected = source.read("lm_head.weight"), dequantize(blocks, kind)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", [T.F32, T.F16, T.BF16], ids=lambda kind: kind.name)
def test_float_types_are_views(tmp_path, kind):
    dtype = {T.F32: np.float32, T.F16: np.float16, T.BF16: ml_dtypes.bfloat16}[kind]
    values = np.random.default_rng(0).standard_normal((6, 8)).astype(dtype)
    stored = (values.view(np.uint8), kind) if kind == T.BF16 else values
    source = GGUFFile(write_gguf(tmp_path / "x.gguf", "qwen2", tiny_fields(), {"output.weight": stored}))
    found = source.read("lm_head.weight")
    assert source.info("lm_head.weight").dtype == found.dtype
    np.testing.assert_array_equal(found, values, strict=True)
    assert not found.flags.writeable
    source.close()
    gc.collect()
    np.testing.assert_array_equal(found, values)
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' was read after close"):
        source.read("lm_head.weight")


@pytest.mark.parametrize("kind", UNREADABLE, ids=lambda kind: kind.name)
def test_types_that_can_not_be_dequantized_are_named(tmp_path, kind):
    path = write_gguf(
        tmp_path / "x.gguf", "llama", tiny_fields(), {"output.weight": (random_blocks(kind, 2, 32), kind)}
    )
    with pytest.raises(CheckpointError, match=rf"x\.gguf: tensor 'output.weight' has type {kind.name}, which can't"):
        GGUFFile(path)


@pytest.mark.parametrize("architecture", ["llama", "internlm2", "mistral3", "qwen2", "qwen3"])
@pytest.mark.parametrize("bias", [False, True])
def test_names_and_rows_are_those_of_hugging_face(tmp_path, architecture, bias):
    tensors = tiny_tensors(bias=bias, qk_norm=architecture == "qwen3")
    stored = dict(tensors)
    if architecture in ("llama", "internlm2", "mistral3"):
        for name, rows in tensors.items():
            if ".attn_q." in name or ".attn_k." in name:
                stored[name] = interleave(rows, 4 if ".attn_q." in name else 2)
    source = GGUFFile(write_gguf(tmp_path / "x.gguf", architecture, tiny_fields(), stored))
    assert source.names() == tuple(hf_name(name) for name in tensors)
    for name, expected in tensors.items():
        np.testing.assert_array_equal(source.read(hf_name(name)), expected, strict=True, err_msg=name)


def test_quantized_rows_are_put_back_in_order(tmp_path):
    w = np.random.default_rng(0).standard_normal((32, 64), np.float32)
    stored = quantize(interleave(w, 4), T.Q8_0)
    source = GGUFFile(
        write_gguf(tmp_path / "x.gguf", "llama", tiny_fields(), {"blk.0.attn_q.weight": (stored, T.Q8_0)})
    )
    found = source.read("model.layers.0.self_attn.q_proj.weight")
    np.testing.assert_array_equal(found, dequantize(quantize(w, T.Q8_0), T.Q8_0))


def test_rope_factors_are_an_attribute(tmp_path):
    factors = np.array([1, 1, 4, 8], np.float32)
    source = GGUFFile(write_gguf(tmp_path / "x.gguf", "llama", tiny_fields(), {"rope_freqs.weight": factors}))
    assert source.names() == ()
    np.testing.assert_array_equal(source.rope_factors, factors, strict=True)
    assert GGUFFile(write_gguf(tmp_path / "y.gguf", "llama", tiny_fields(), tiny_tensors())).rope_factors is None


def test_tensors_without_a_name_in_llama_keep_theirs(tmp_path):
    tensors = {"blk.0.ffn_gate_inp.weight": np.ones((2, 4), np.float32)}
    source = GGUFFile(write_gguf(tmp_path / "x.gguf", "llama", tiny_fields(), tensors))
    assert source.names() == ("blk.0.ffn_gate_inp.weight",)
    with pytest.raises(CheckpointError, match=r"tensor 'lm_head.weight' is missing; 1 others"):
        source.info("lm_head.weight")


def test_metadata_is_plain_python(tmp_path):
    tokens = ["<s>", "é", "", "Ġthe", "日本"] * 50
    fields = tiny_fields() | {
        "general.name": "tiny",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.5, -1.0],
        "tokenizer.ggml.token_type": [1, 3, 6],
        "tokenizer.ggml.add_bos_token": True,
    }
    path = write_gguf(tmp_path / "x.gguf", "llama", fields, tiny_tensors())
    metadata = GGUFFile(path).metadata
    reader = gguf.GGUFReader(path)
    theirs = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert metadata == theirs
    assert metadata["tokenizer.ggml.tokens"] == tokens
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert type(metadata["llama.block_count"]) is int
    assert type(metadata["llama.rope.freq_base"]) is float
    assert type(metadata["tokenizer.ggml.scores"][0]) is float


def test_another_alignment(tmp_path):
    tensors = tiny_tensors()
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_custom_alignment(128)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = GGUFFile(path)
    for name, expected in tensors.items():
        np.testing.assert_array_equal(source.read(hf_name(name)), expected)


def test_every_truncation_is_an_error(tmp_path):
    fields = tiny_fields() | {"tokenizer.ggml.tokens": ["a", "bc"], "tokenizer.ggml.scores": [1.0, 2.0]}
    whole = write_gguf(
        tmp_path / "x.gguf", "llama", fields, {"output.weight": np.ones((2, 4), np.float32)}
    ).read_bytes()
    path = tmp_path / "cut.gguf"
    data_bytes = 32
    assert len(whole) % 32 == 0
    for kept in range(4, len(whole)):
        path.write_bytes(whole[:kept])
        with pytest.raises(CheckpointError, match=r"cut\.gguf: truncated") as error:
            GGUFFile(path)
        if kept >= len(whole) - data_bytes:
            found = kept - (len(whole) - data_bytes)
            assert f"tensor 'output.weight' needs 32 bytes, found {found}" in str(error.value)
    path.write_bytes(whole)
    assert GGUFFile(path).names() == ("lm_head.weight",)


def test_every_flipped_byte_of_the_header_is_an_error_or_read(tmp_path):
    whole = write_gguf(tmp_path / "x.gguf", "llama", tiny_fields(), {"output.weight": np.ones((2, 4), np.float32)})
    whole = whole.read_bytes()
    path = tmp_path / "bad.gguf"
    refused = []
    for position in range(len(whole) - 32):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            GGUFFile(path)
        except CheckpointError as error:
            refused.append(str(error))
    assert len(refused) > 200
    assert all("bad.gguf" in message for message in refused)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"PK\x03\x04", r"begins with b'PK\\x03\\x04', expected b'GGUF'"),
        (b"GGUF" + struct.pack("<I", 1), "GGUF version 1 is not supported; supported: 2 and 3"),
        (b"GGUF" + struct.pack(">I", 3), r"version 50331648 \(a big-endian file\) is not supported"),
    ],
)
def test_what_is_no_gguf_file_is_refused(tmp_path, start, message):
    path = tmp_path / "x.gguf"
    path.write_bytes(start + bytes(64))
    with pytest.raises(CheckpointError, match=message):
        GGUFFile(path)
    with pytest.raises(CheckpointError, match="no such file"):
        GGUFFile(tmp_path / "missing.gguf")


def test_a_split_file_is_refused(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", "llama", tiny_fields() | {"split.count": 3}, tiny_tensors())
    with pytest.raises(CheckpointError, match=r"one of 3 parts of a split file.*llama-gguf-split --merge"):
        GGUFFile(path)


def header_with(value_type, value):
    """A header with no tensors and one metadata entry "k"."""
    entry = struct.pack("<Q", 1) + b"k" + struct.pack("<I", value_type) + value
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry + bytes(64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header_with(9, struct.pack("<IQ", 9, 1)), "metadata 'k' is an array of arrays, which is not supported"),
        (header_with(99, b""), "metadata 'k' has value type 99, which is not known"),
        (header_with(8, struct.pack("<Q", 2) + b"\xff\xff"), "metadata 'k' is not UTF-8"),
        (header_with(9, struct.pack("<IQ", 8, 2**60)), "truncated in metadata 'k': expected 9223372036854775808 bytes"),
        (header_with(9, struct.pack("<IQQ", 8, 2, 60)), "truncated in metadata 'k': expected 2 strings, found 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "truncated in the list of tensors"),
    ],
)
def test_senseless_metadata_is_named(tmp_path, content, message):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        GGUFFile(path)


def test_senseless_head_counts_are_refused(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", "llama", tiny_fields() | {"attention.head_count": 0}, tiny_tensors())
    with pytest.raises(CheckpointError, match="head_count is 0 and head_count_kv 2, expected positive"):
        GGUFFile(path)
    path = write_gguf(tmp_path / "y.gguf", "llama", tiny_fields() | {"attention.head_count": 5}, tiny_tensors())
    with pytest.raises(CheckpointError, match=r"q_proj.weight' has 32 rows, expected a multiple of 2 \* 5 heads"):
        GGUFFile(path).read("model.layers.0.self_attn.q_proj.weight")


def test_dequantizing_allocates_about_one_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "_SLAB_VALUES", 1 << 14)
    stored = quantize(np.ones((1024, 512), np.float32), T.Q8_0)
    tensors = {f"blk.{i}.ffn_up.weight": (stored, T.Q8_0) for i in range(6)}
    path = write_gguf(tmp_path / "x.gguf", "llama", tiny_fields(), tensors)
    one = 1024 * 512 * 4
    source = GGUFFile(path)
    tracemalloc.start()
    try:
        for name in source.names():
            assert source.read(name)[-1, -1] == pytest.approx(1, rel=0.01)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert one <= peak < 1.5 * one
