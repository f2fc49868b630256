"""The functional layer: README's example, ragged prefill, chunks, decode inside scan."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.plain_decoder import plain_logits
from support.tiny_engine import CONFIG, tiny_parameters

from jaxdeploy import functional as jd
from jaxdeploy.model.decoder import Decoder

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def tiny():
    return Decoder(CONFIG), tiny_parameters()


def rows(*lengths: int) -> tuple[jnp.ndarray, jnp.ndarray]:
    rng = np.random.RandomState(0)
    tokens = rng.randint(1, CONFIG.vocab_size, (len(lengths), max(lengths)))
    return jnp.asarray(tokens, jnp.int32), jnp.asarray(lengths, jnp.int32)


@pytest.mark.parametrize("quant_policy", [0, 8])
def test_ragged_prefill_in_chunks_then_decode(tiny, quant_policy):
    decoder, params = tiny
    tokens, lengths = rows(20, 3, 11)
    cache = jd.new_cache(decoder, 3, 32, page_size=8, quant_policy=quant_policy)
    first = jnp.minimum(lengths, 7)
    _, cache = jd.prefill(decoder, params, cache, tokens[:, :7], first)
    rest = jnp.stack([jnp.roll(row, -7) for row in tokens])
    found, cache = jd.prefill(decoder, params, cache, rest[:, :13], jnp.maximum(lengths - 7, 1))
    np.testing.assert_array_equal(cache.lengths, first + jnp.maximum(lengths - 7, 1))
    tolerance = 1e-4 if quant_policy == 0 else 0.05
    for row in (0, 2):
        ids = tokens[row, : int(lengths[row])]
        expected = plain_logits(CONFIG, params, ids, 32)[-1]
        np.testing.assert_allclose(found[row], expected, atol=tolerance * float(jnp.abs(expected).max()))
    step, _ = jd.decode_step(decoder, params, cache, tokens[:, 0])
    expected = plain_logits(CONFIG, params, jnp.append(tokens[0, :20], tokens[0, 0]), 32)[-1]
    np.testing.assert_allclose(step[0], expected, atol=tolerance * float(jnp.abs(expected).max()))


@pytest.mark.demo
def test_the_readmes_example_runs(capsys):
    example = re.search(r"<!-- functional example -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert example, "README shows the functional layer"
    source = example[1]
    assert len([line for line in source.splitlines() if line.strip()]) <= 15
    exec(compile(source, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.split()) > 5
    assert jax.devices()
