"""Int4 checkpoints run end to end, still packed, as their de-quantized twins would."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.plain_decoder import plain_logits
from support.quantized_checkpoints import QUANTIZATIONS, write_quantized

from jaxdeploy import functional as jd
from jaxdeploy.model.decoder import Decoder
from jaxdeploy.weights.checkpoint import open_checkpoint
from jaxdeploy.weights.loader import load_parameters
from jaxdeploy.weights.quant_tensor import QuantTensor

TOKENS = np.random.RandomState(0).randint(0, 128, 13)


def is_packed(leaf: object) -> bool:
    return isinstance(leaf, QuantTensor)


@pytest.mark.parametrize("quantization", sorted(QUANTIZATIONS))
@pytest.mark.parametrize("case", ["llama3", "internlm2"])
def test_packed_model_equals_its_dequantized_twin(tmp_path: Path, case: str, quantization: str):
    write_quantized(case, quantization, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    try:
        params = load_parameters(checkpoint, "float32")
    finally:
        checkpoint.close()
    packed = [leaf for leaf in jax.tree.leaves(params, is_leaf=is_packed) if is_packed(leaf)]
    assert len(packed) == 4, "qkv, out, gate_up and down stay packed"
    assert all(leaf.packed.dtype == jnp.uint8 for leaf in packed)
    dense = jax.tree.map(lambda leaf: leaf.dequantize() if is_packed(leaf) else leaf, params, is_leaf=is_packed)

    decoder = Decoder(checkpoint.config)
    cache = jd.new_cache(decoder, 1, 16, page_size=16)
    ids = jnp.asarray(TOKENS, jnp.int32)
    logits, cache = jd.prefill(decoder, params, cache, ids[None, :-1], jnp.array([len(TOKENS) - 1], jnp.int32))
    last, _ = jd.decode_step(decoder, params, cache, ids[-1:])
    expected = plain_logits(checkpoint.config, dense, ids, 16)
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(logits[0], expected[-2], atol=1e-4 * scale)
    np.testing.assert_allclose(last[0], expected[-1], atol=1e-4 * scale)
