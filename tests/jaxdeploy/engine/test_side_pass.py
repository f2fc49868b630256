"""Scores and embeddings of given text against full recompute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.plain_decoder import plain_logits
from support.tiny_engine import CONFIG, tiny_parameters

from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.engine import side_pass
from jaxdeploy.engine.embedding import Embedder
from jaxdeploy.engine.limits import Limits
from jaxdeploy.engine.scoring import Scorer
from jaxdeploy.errors import PromptTooLongError
from jaxdeploy.model.decoder import Decoder

LIMITS = Limits.resolve(EngineConfig(cache_block_seq_len=8), CONFIG, platform="cpu")
IDS = np.random.RandomState(3).randint(1, CONFIG.vocab_size, 50).tolist()


@pytest.fixture(scope="module")
def params() -> dict:
    return tiny_parameters()


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(side_pass, "CHUNK_TOKENS", 16)
        yield


@pytest.fixture(scope="module")
def scorer(params) -> Scorer:
    return Scorer(Decoder(CONFIG), params, LIMITS, quant_policy=0)


@pytest.fixture(scope="module")
def logits(params) -> np.ndarray:
    """After each token of IDS, by full recompute; those of its beginnings are the first rows."""
    run = jax.jit(lambda params, ids: plain_logits(CONFIG, params, ids, 128))
    return np.asarray(run(params, jnp.asarray(IDS, jnp.int32)))


@pytest.mark.parametrize("length", [2, 16, 17, 50])
def test_scores_equal_full_recompute(scorer, logits, length):
    ids = IDS[:length]
    logprobs = np.asarray(jax.nn.log_softmax(logits[:length], axis=-1))
    expected = [float(logprobs[i, token]) for i, token in enumerate(ids[1:])]
    np.testing.assert_allclose(scorer.token_logprobs(ids), expected, atol=1e-4)
    detailed = scorer.prompt_logprobs(ids, 3)
    assert [entry.token for entry in detailed] == ids[1:]
    np.testing.assert_allclose([entry.logprob for entry in detailed], expected, atol=1e-4)
    for i, entry in enumerate(detailed):
        np.testing.assert_allclose([v for _, v in entry.top], np.sort(logprobs[i])[::-1][:3], atol=1e-4)


def test_text_longer_than_the_cache_is_refused(params):
    scorer = Scorer(Decoder(CONFIG), params, LIMITS, quant_policy=0, longest=20)
    with pytest.raises(PromptTooLongError, match="21 tokens, more than the 20"):
        scorer.token_logprobs(IDS[:21])


def test_embeddings_are_pooled_unit_vectors(params, logits):
    embedder = Embedder(Decoder(CONFIG), params, LIMITS, quant_policy=0)
    mean, last = embedder.embed(IDS), embedder.embed(IDS, "last")
    assert mean.shape == (CONFIG.hidden_size,)
    np.testing.assert_allclose([np.linalg.norm(mean), np.linalg.norm(last)], 1, atol=1e-5)
    assert not np.allclose(mean, last)
    np.testing.assert_allclose(embedder.embed(IDS[:1]), embedder.embed(IDS[:1], "last"), atol=1e-6)
    head = params["lm_head"]
    ratio = np.asarray(last @ head.T) / logits[-1]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-2)  # the same direction, only scaled
