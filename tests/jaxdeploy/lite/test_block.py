"""The calibration's layer, run over all layers, gives Hugging Face's logits for every family."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from support.goldens import FOLDER
from support.tiny_checkpoints import CASES, write_checkpoint

from jaxdeploy.lite.block import positions
from jaxdeploy.lite.block_stream import BlockStream, mean_loss
from jaxdeploy.lite.layer_weights import LayerFiles, outer_names, read_finite
from jaxdeploy.weights.checkpoint import open_checkpoint


@pytest.mark.parametrize("case", sorted(CASES))
def test_loss_equals_that_of_the_golden_logits(tmp_path: Path, case: str):
    golden = np.load(FOLDER / f"{case}.npz")
    tokens = np.stack([golden["tokens"]] * 3)
    checkpoint = open_checkpoint(write_checkpoint(case, tmp_path))
    config, source = checkpoint.config, checkpoint.source
    assert source is not None
    outer = {plan.path[0]: read_finite(source, name) for name, plan in outer_names(config)}
    stream = BlockStream(config, outer["embedding"], tokens, batch=2, dtype="float32")
    files = LayerFiles(config)
    for layer in range(config.num_layers):
        weights = {name: jnp.asarray(array) for name, array in files.read(source, layer).items()}
        stream.advance(weights, positions(config, tokens.shape[1], layer))
    head = outer["embedding" if config.tie_word_embeddings else "lm_head"]
    found = mean_loss(config, stream, outer["norm"], head, tokens)
    checkpoint.close()

    logits = golden["logits"].astype(np.float64)[:-1]
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -np.take_along_axis(logprobs, golden["tokens"][1:, None].astype(np.int64), axis=1).mean()
    assert found == pytest.approx(expected, abs=2e-5)
    assert [chunk.shape[0] for chunk in stream.chunks] == [2, 1]
