"""The rounded output matrix: what it is, and that the model's logits come from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.config.model import ModelConfig
from jaxdeploy.errors import ConfigError
from jaxdeploy.lite.head import ROWS_AT_A_TIME, with_rounded_head
from jaxdeploy.model.decoder import Decoder, next_logits, random_parameters
from jaxdeploy.weights.int8_matrix import Int8Matrix
from jaxdeploy.weights.quant_tensor import QuantTensor
from jaxdeploy.weights.tiled_tensor import TiledTensor, tile_weights
from pallas_kernels.int4_matmul.reference import dequantize


def tiny(*, tied: bool, hidden: int = 64, vocabulary: int = 96) -> ModelConfig:
    return ModelConfig.from_hf(
        {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary, "hidden_size": hidden,
            "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": tied, "dtype": "bfloat16",
        }
    )  # fmt: skip


@pytest.mark.parametrize("tied", [False, True])
def test_logits_come_from_the_rounded_matrix(tied):
    config = tiny(tied=tied)
    params = random_parameters(config, "float32")
    dense = params["embedding"] if tied else params["lm_head"]
    rounded = with_rounded_head(params, bits=4, tied=tied)
    head = rounded["lm_head"]
    assert isinstance(head, QuantTensor)
    assert rounded["embedding"] is params["embedding"], "looked up as before"
    w = dequantize(head.packed[0], head.scale[0], head.zero[0], group_size=head.group_size)
    step = jnp.repeat(head.scale[0].T, head.group_size, axis=1).astype(jnp.float32)
    assert (jnp.abs(w - dense) <= 1.01 * step).all(), "half a step, and half of one where the zero point was rounded"
    assert jnp.abs(w - dense).mean() < 0.3 * step.mean()
    hidden = jax.random.normal(jax.random.key(1), (3, config.hidden_size))
    logits = next_logits(Decoder(config, "float32"), rounded, hidden)
    np.testing.assert_allclose(logits, hidden @ w.T, rtol=1e-4, atol=1e-4)
    assert not np.allclose(logits, hidden @ dense.T, atol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_eight_bits_are_off_by_half_a_step_at_most(tied):
    config = tiny(tied=tied, hidden=16, vocabulary=ROWS_AT_A_TIME + 2)
    params = random_parameters(config, "float32")
    name = "embedding" if tied else "lm_head"
    params[name] = dense = params[name].at[5].set(0.0)
    rounded = with_rounded_head(params, bits=8, tied=tied)
    head = rounded["lm_head"]
    assert isinstance(head, Int8Matrix)
    assert head.values.shape == dense.shape
    w = head.values.astype(jnp.float32) * head.scale[:, None]
    assert (jnp.abs(w - dense) <= 0.501 * head.scale[:, None]).all()
    assert (jnp.abs(head.values).max(axis=1) == 127).sum() == dense.shape[0] - 1
    assert not w[5].any(), "a row of zeros"
    hidden = jax.random.normal(jax.random.key(1), (3, config.hidden_size))
    logits = next_logits(Decoder(config, "float32"), rounded, hidden)
    np.testing.assert_allclose(logits, hidden @ w.T, rtol=1e-4, atol=1e-4)


def test_sixteen_bits_change_nothing():
    params = {"lm_head": jnp.ones((4, 8))}
    assert with_rounded_head(params, bits=16, tied=False) is params


def test_the_gpu_reads_the_same_from_tiles():
    config = tiny(tied=False)
    rounded = with_rounded_head(random_parameters(config, "bfloat16"), bits=4, tied=False)
    hidden = jax.random.normal(jax.random.key(1), (3, config.hidden_size), jnp.bfloat16)
    expected = next_logits(Decoder(config, "bfloat16"), rounded, hidden)
    tiled = tile_weights(dict(rounded))
    assert isinstance(tiled["lm_head"], TiledTensor)
    np.testing.assert_array_equal(next_logits(Decoder(config, "bfloat16"), tiled, hidden), expected)


def test_a_large_vocabulary_is_rounded_in_parts_that_fit_together():
    config = tiny(tied=False, hidden=16, vocabulary=ROWS_AT_A_TIME + 2)
    params = random_parameters(config, "bfloat16")
    head = with_rounded_head(params, bits=4, tied=False)["lm_head"]
    assert head.packed.shape == (1, ROWS_AT_A_TIME + 2, 8)
    error = jnp.abs(head.dequantize()[0] - params["lm_head"]).max()
    assert error < 0.02


def test_sizes_that_no_group_divides_and_unknown_widths_are_errors():
    with pytest.raises(ConfigError, match="this model's is 8"):
        with_rounded_head({"lm_head": jnp.ones((4, 8), jnp.bfloat16)}, bits=4, tied=False)
    with pytest.raises(ConfigError, match="lm_head_bits=6"):
        EngineConfig(lm_head_bits=6)
