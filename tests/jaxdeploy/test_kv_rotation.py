"""Models with turned keys and values: the same function, and an int4 cache that outlier channels don't break."""

import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from support.quantized_checkpoints import write_quantized
from support.tiny_text_model import write_text_model

from jaxdeploy import functional as jd
from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.config.model import ModelConfig
from jaxdeploy.errors import ConfigError
from jaxdeploy.kv_rotation import fit_rotation, with_rotation
from jaxdeploy.loading import load_engine
from jaxdeploy.model.decoder import Decoder
from jaxdeploy.model.rotation import plain_bases, rotate_heads
from jaxdeploy.weights.checkpoint import open_checkpoint
from jaxdeploy.weights.hf_export import hf_tensors
from jaxdeploy.weights.loader import load_parameters
from jaxdeploy.weights.safetensors_writer import write_safetensors

TOKENS = 48
IDS = np.random.RandomState(1).randint(3, 128, TOKENS).astype(np.int32)
ON = EngineConfig(quant_policy=4)


def load(folder: Path, options: EngineConfig = ON) -> tuple[Decoder, dict]:
    checkpoint = with_rotation(open_checkpoint(folder), options)
    decoder, params = Decoder(checkpoint.config), load_parameters(checkpoint, "float32")
    checkpoint.close()
    return decoder, params


def all_logits(decoder: Decoder, params: dict, policy: int = 0) -> np.ndarray:
    """After every token of IDS."""
    cache = jd.new_cache(decoder, 1, TOKENS, page_size=16, quant_policy=policy)
    found = []
    for start in range(0, TOKENS, 8):
        ids = jnp.asarray(IDS[None, start : start + 8])
        logits, cache = jd.prefill(decoder, params, cache, ids, jnp.array([8], jnp.int32))
        found.append(np.asarray(logits[0]))
    return np.stack(found)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("case", ["qwen3", "internlm2_bias"])
def test_a_turned_model_is_the_same_function(case: str, tmp_path: Path):
    folder = write_text_model(case, tmp_path)
    plain = jd.load(folder)
    decoder, params = load(folder)
    assert decoder.config.value_rotation == "fold"
    expected = all_logits(plain.decoder, plain.params)
    assert error(all_logits(decoder, params), expected) < 1e-4
    fitted = jd.load(folder, kv_rotation=True).params
    basis = fitted["layers"]["attention"]["key_basis"]
    assert not np.allclose(basis, params["layers"]["attention"]["key_basis"], atol=1e-2)
    assert error(all_logits(decoder, fitted), expected) < 1e-4
    online = Decoder(replace(decoder.config, value_rotation="online"))
    unfolded = {
        **plain.params["layers"]["attention"],
        **{k: v for k, v in fitted["layers"]["attention"].items() if "basis" in k},
    }
    layers = {**fitted["layers"], "attention": unfolded}
    assert error(all_logits(online, {**plain.params, "layers": layers}), expected) < 1e-4


def test_folded_values_come_out_turned(tmp_path: Path):
    folder = write_text_model("internlm2_bias", tmp_path)
    (_, plain), (decoder, params) = load(folder, EngineConfig()), load(folder)
    kv_rows = decoder.config.num_kv_heads * decoder.config.head_dim
    for part in ("weight", "bias"):
        before, after = (tree["layers"]["attention"]["qkv"][part] for tree in (plain, params))
        np.testing.assert_array_equal(after[:, :-kv_rows], before[:, :-kv_rows])
        heads = jnp.moveaxis(before[:, -kv_rows:].reshape(2, -1, decoder.config.head_dim, *before.shape[2:]), 2, -1)
        turned = jnp.moveaxis(rotate_heads(heads), -1, 2).reshape(after[:, -kv_rows:].shape)
        np.testing.assert_allclose(after[:, -kv_rows:], turned, atol=1e-5)


def test_packed_weights_are_turned_as_they_run(tmp_path: Path):
    write_quantized("llama3", "awq", tmp_path)
    plain_decoder, plain = load(tmp_path, EngineConfig())
    decoder, params = load(tmp_path)
    assert decoder.config.value_rotation == "online"
    assert error(all_logits(decoder, params), all_logits(plain_decoder, plain)) < 1e-4


def with_outliers(params: dict, config: ModelConfig, kind: str) -> dict:
    """Large key channels: scaled up with the queries scaled down, or by a bias in slow RoPE channels, as Qwen2.5 has them."""
    heads, kv_heads, size = config.num_heads, config.num_kv_heads, config.head_dim
    attention = params["layers"]["attention"]
    qkv = {name: np.array(array) for name, array in attention["qkv"].items()}
    if kind == "scale":
        for name, array in qkv.items():
            parts = array.reshape(len(array), heads + 2 * kv_heads, size, -1)
            for channel in (1, 1 + size // 2):
                parts[:, heads : heads + kv_heads, channel] *= 40
                parts[:, :heads, channel] /= 40
            qkv[name] = parts.reshape(array.shape)
    else:
        parts = qkv["bias"].reshape(-1, heads + 2 * kv_heads, size)
        parts[:, heads : heads + kv_heads, size // 2 - 1] += 60
        parts[:, heads : heads + kv_heads, size - 1] -= 90
    turned = {name: jnp.asarray(array) for name, array in qkv.items()}
    return {**params, "layers": {**params["layers"], "attention": {**attention, "qkv": turned}}}


@pytest.mark.parametrize("kind", ["scale", "bias"])
def test_outlier_channels_of_keys_do_not_break_int4(kind: str, tmp_path: Path):
    folder = write_text_model("qwen2", tmp_path)
    model = jd.load(folder)
    config = model.decoder.config
    params = with_outliers(model.params, config, kind)
    exact = all_logits(model.decoder, params)
    collapsed = error(all_logits(model.decoder, params, 4), exact)
    decoder = Decoder(config.with_rotation(foldable=False))
    bases = plain_bases(config.num_layers, config.num_kv_heads, config.head_dim, "float32")
    attention = {**params["layers"]["attention"], "key_basis": bases, "query_basis": bases}
    turned = {**params, "layers": {**params["layers"], "attention": attention}}
    fitted = error(all_logits(decoder, fit_rotation(decoder, turned, model.tokenizer), 4), exact)
    usual = error(all_logits(model.decoder, model.params, 4), all_logits(model.decoder, model.params))
    assert collapsed > 6 * usual, "the outliers were meant to hurt"
    assert fitted < 1.5 * usual, (fitted, usual, collapsed)


def test_the_engine_turns_for_int4_unless_told_otherwise(tmp_path: Path):
    folder = write_text_model("qwen2", tmp_path)
    sizes = {"max_batch_size": 1, "cache_max_entry_count": 16, "session_len": 64, "max_prefill_token_num": 32}
    checkpoint = open_checkpoint(folder)
    for policy, rotation, expected in ((4, None, True), (4, False, False), (8, None, False), (8, True, True)):
        options = EngineConfig(quant_policy=policy, kv_rotation=rotation)
        assert with_rotation(checkpoint, options).config.rotates_keys == expected
    checkpoint.close()
    loaded = load_engine(folder, EngineConfig(quant_policy=4, **sizes))
    basis = loaded.engine.executor.params["layers"]["attention"]["key_basis"]
    loaded.close()
    assert not np.allclose(basis, plain_bases(2, 2, 16, "float32"), atol=1e-2), "fitted to the model"
    with pytest.raises(ConfigError, match="kv_rotation needs quant_policy 8 or 4"):
        EngineConfig(kv_rotation=True)


def test_a_checkpoint_says_that_its_values_are_turned(tmp_path: Path):
    folder = write_text_model("llama_bias", tmp_path / "plain")
    decoder, params = load(folder)
    stored = tmp_path / "stored"
    bare = replace(decoder.config, rotates_keys=False)
    write_safetensors(stored, hf_tensors(params, bare, None))
    cfg = json.loads((folder / "config.json").read_text())
    (stored / "config.json").write_text(json.dumps({**cfg, "jaxdeploy": {"values_rotated": True}}))
    plain = jd.load(folder)
    for options in (EngineConfig(), ON):
        again, weights = load(stored, options)
        assert again.config.value_rotation == "stored"
        assert error(all_logits(again, weights), all_logits(plain.decoder, plain.params)) < 1e-4
    (stored / "config.json").write_text(json.dumps({**cfg, "jaxdeploy": {"values_rotated": "yes"}}))
    with pytest.raises(ConfigError, match=r"jaxdeploy.values_rotated='yes' must be true or false"):
        open_checkpoint(stored)
