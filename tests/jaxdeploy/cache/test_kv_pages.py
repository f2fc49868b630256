import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeploy.cache.kv_pages import KVPages, page_bytes
from jaxdeploy.cache.sizing import tree_bytes
from jaxdeploy.config.model import ModelConfig
from jaxdeploy.errors import ConfigError

CONFIG = ModelConfig.from_hf(
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 32,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
)


@pytest.mark.parametrize("page_size", [1, 64])
@pytest.mark.parametrize(
    ("quant_policy", "dtype", "head_bytes"),
    [(0, "float32", 16 * 4), (0, "bfloat16", 16 * 2), (8, "bfloat16", 16 + 4), (4, "bfloat16", 8 + 4)],
)
def test_page_bytes_is_what_a_page_takes(quant_policy, dtype, head_bytes, page_size):
    computed = page_bytes(CONFIG, quant_policy=quant_policy, page_size=page_size, dtype_bytes=jnp.dtype(dtype).itemsize)
    # layers * kv_heads * (K and V) * tokens, each a head's integers and its pair of two float16
    assert computed == 3 * 2 * 2 * page_size * head_bytes
    pages = jax.eval_shape(
        lambda: KVPages.create(CONFIG, 7, page_size=page_size, quant_policy=quant_policy, dtype=dtype)
    )
    assert tree_bytes(pages) == 7 * computed
    assert (pages.num_pages, pages.page_size) == (7, page_size)


def test_int8_is_half_and_int4_a_quarter_of_bf16_but_for_the_pairs():
    config = dataclasses.replace(CONFIG, head_dim=128)
    plain, int8, int4 = (page_bytes(config, quant_policy=q, page_size=64, dtype_bytes=2) for q in (0, 8, 4))
    pairs = 3 * 2 * 2 * 64 * 4
    assert int8 == plain // 2 + pairs
    assert int4 == plain // 4 + pairs


@pytest.mark.parametrize(("quant_policy", "bits"), [(0, 16), (8, 8), (4, 4)])
def test_keys_and_values_come_back_from_their_places(quant_policy, bits):
    pages = KVPages.create(CONFIG, 5, page_size=4, quant_policy=quant_policy)
    assert pages.bits == bits
    rng = np.random.default_rng(0)
    k, v = (jnp.asarray(rng.standard_normal((6, 2, 16)), jnp.float32) for _ in range(2))
    page_ids = np.array([4, 4, 1, 1, 1, 5], np.int32)  # the last is padding
    offsets = np.array([2, 3, 0, 1, 2, 0], np.int32)
    layer = jnp.int32(1)
    pages = jax.jit(KVPages.write, donate_argnums=0)(pages, layer, k, v, page_ids, offsets)
    for pool, new in ((pages.k_pages, k), (pages.v_pages, v)):
        assert (pool.bits, pool.page_size) == (bits, 4)
        tokens = np.asarray(pool.gather(layer, jnp.array([[4, 1]], jnp.int32)))[0].transpose(1, 0, 2)  # [S, K, H]
        written = tokens[[2, 3, 4, 5, 6]]
        # Half a step of the widest head; 0 where K and V are kept as they are. The pair of 4 bits has the least squared error,
        # which may cost the farthest value some of its own.
        width = float((new.max(-1) - new.min(-1)).max())
        bound = {16: 0.0, 8: 0.501, 4: 0.75}[bits] * width / (2**bits - 1)
        np.testing.assert_allclose(written, new[:5], rtol=0, atol=bound)
        np.testing.assert_array_equal(np.delete(tokens, [2, 3, 4, 5, 6], axis=0), 0)
        for other in (0, 2):
            untouched = pool.gather(jnp.int32(other), jnp.arange(5, dtype=jnp.int32)[None])
            np.testing.assert_array_equal(untouched, 0)


def test_unknown_quant_policy():
    with pytest.raises(ConfigError, match=r"quant_policy=2 must be one of \(0, 8, 4\)"):
        KVPages.create(CONFIG, 1, quant_policy=2)


def test_int4_needs_an_even_head_dim():
    with pytest.raises(ConfigError, match=r"quant_policy=4 .* even head_dim, not 15"):
        KVPages.create(dataclasses.replace(CONFIG, head_dim=15), 1, quant_policy=4)
