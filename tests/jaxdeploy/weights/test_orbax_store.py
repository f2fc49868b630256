"""Our own folder: restored as it was saved, cast and placed on request, refused when incomplete."""

import json
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from support.quantized_checkpoints import write_quantized
from support.tiny_checkpoints import write_checkpoint

from jaxdeploy.errors import CheckpointError
from jaxdeploy.weights.checkpoint import open_checkpoint
from jaxdeploy.weights.loader import load_parameters
from jaxdeploy.weights.orbax_store import save_parameters


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """(checkpoint, folder that its tree was saved to)."""
    checkpoint = open_checkpoint(write_checkpoint("qwen3", tmp_path_factory.mktemp("hf"), dtype=np.float16))
    folder = tmp_path_factory.mktemp("orbax")
    save_parameters(folder, load_parameters(checkpoint, None), checkpoint)
    return checkpoint, folder


@pytest.fixture
def damaged(dense, tmp_path):
    """A copy of the folder to damage."""
    return shutil.copytree(dense[1], tmp_path / "copy")


def assert_same_tree(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("dtype", [None, "float32"])
def test_restored_as_loaded(dense, dtype):
    checkpoint, folder = dense
    restored = open_checkpoint(folder, "orbax")
    assert restored.config == checkpoint.config
    assert_same_tree(load_parameters(restored, dtype), load_parameters(checkpoint, dtype))


@pytest.mark.parametrize("quantization", ["awq", "gptq_act_order", "compressed_symmetric"])
def test_int4_is_restored_packed(quantization, tmp_path):
    write_quantized("internlm2", quantization, tmp_path / "hf")
    checkpoint = open_checkpoint(tmp_path / "hf")
    save_parameters(tmp_path / "orbax", load_parameters(checkpoint, None), checkpoint)
    restored = open_checkpoint(tmp_path / "orbax")
    assert restored.layout == checkpoint.layout
    assert_same_tree(load_parameters(restored, "bfloat16"), load_parameters(checkpoint, "bfloat16"))


def test_restored_where_the_rule_says(dense):
    mesh = Mesh(np.array(jax.devices()[:1]), ("tp",))

    def rule(axes):
        return NamedSharding(mesh, PartitionSpec(*("tp" if axis == "heads" else None for axis in axes)))

    seen = []
    params = load_parameters(
        open_checkpoint(dense[1]), "bfloat16", sharding=rule, progress=lambda done, total: seen.append((done, total))
    )
    assert params["layers"]["attention"]["qkv"]["weight"].sharding.spec == PartitionSpec(None, "tp", None)
    total = sum(array.nbytes for array in jax.tree.leaves(params))
    assert seen == [(0, total), (total, total)]


def edit(folder, file, change):
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("jaxdeploy.json", lambda about: about.update(version=9), "version 9 is not supported, expected 1"),
        ("jaxdeploy.json", lambda about: about["arrays"].pop("norm.weight"), r"'norm\.weight' is missing"),
        ("config.json", lambda config: config.update(num_hidden_layers=3), r"\(2, .*expected float32 \(3, "),
        ("config.json", lambda config: config.update(tie_word_embeddings=True), r"'lm_head' has no place"),
    ],
)
def test_what_does_not_fit_is_named(damaged, file, change, message):
    edit(damaged, file, change)
    with pytest.raises(CheckpointError, match=message):
        load_parameters(open_checkpoint(damaged), "float32")


def test_missing_file(damaged):
    (damaged / "params" / "manifest.ocdbt").unlink()
    with pytest.raises(CheckpointError, match=r"params/manifest\.ocdbt: expected \d+ bytes, it is missing"):
        load_parameters(open_checkpoint(damaged), "float32")


def test_truncated_file(damaged):
    file = max((damaged / "params").rglob("d/*"), key=lambda file: file.stat().st_size)
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=f"{file.name}: expected {size} bytes, found {size - 10}"):
        load_parameters(open_checkpoint(damaged), "float32")


def test_damaged_metadata(damaged):
    file = damaged / "params" / "_METADATA"
    file.write_bytes(b"x" * file.stat().st_size)
    with pytest.raises(CheckpointError, match="params: can't be restored, convert the checkpoint again"):
        load_parameters(open_checkpoint(damaged), "float32")
