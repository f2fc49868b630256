"""Getting a model ready for a quantized KV cache: which rotation it runs with, and key bases fitted to what its heads do."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdeploy.cache.kv_pages import KVPages
from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.model.decoder import Decoder, attention_moments
from jaxdeploy.model.inputs import ModelInputs
from jaxdeploy.model.rotation import key_bases
from jaxdeploy.text.tokenizer import Tokenizer
from jaxdeploy.weights.checkpoint import Checkpoint

FIT_TOKENS = 1024
_PAGE = 64


def with_rotation(checkpoint: Checkpoint, options: EngineConfig) -> Checkpoint:
    """``checkpoint`` with the rotation that ``options`` ask for in its configuration."""
    if not options.rotates:
        return checkpoint
    return replace(checkpoint, config=checkpoint.config.with_rotation(foldable=checkpoint.source is not None))


def fit_rotation(decoder: Decoder, params: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """``params`` with key bases fitted to the model by one pass over FIT_TEXT; as they are if the model rotates no keys.

    A pass over other text gives nearly the same bases: they follow what a head's channels do, not what a text says.
    """
    if not decoder.config.rotates_keys:
        return params
    attention = params["layers"]["attention"]
    keys, queries = measure_moments(decoder, params, fit_tokens(tokenizer))
    bases = key_bases(np.asarray(keys), np.asarray(queries))
    fitted = {
        name: jax.device_put(basis.astype(attention[name].dtype), attention[name].sharding)
        for name, basis in zip(("key_basis", "query_basis"), bases, strict=True)
    }
    return {**params, "layers": {**params["layers"], "attention": {**attention, **fitted}}}


def fit_tokens(tokenizer: Tokenizer) -> list[int]:
    """FIT_TEXT as tokens, at most FIT_TOKENS."""
    return tokenizer.encode(FIT_TEXT, add_special=True)[:FIT_TOKENS]


def measure_moments(decoder: Decoder, params: dict[str, Any], ids: list[int]) -> tuple[jax.Array, jax.Array]:
    """Second moments of keys and queries of every layer and KV head, [L, K, H, H] each, from one pass over ``ids``."""
    count = min(len(ids), decoder.config.max_position_embeddings)
    num_pages = -(-count // _PAGE)
    inputs = ModelInputs(
        tokens=jnp.asarray(ids[:count], jnp.int32),
        positions=jnp.arange(count, dtype=jnp.int32),
        rows=jnp.zeros(count, jnp.int32),
        query_start=jnp.array([0, count], jnp.int32),
        context_lens=jnp.array([count], jnp.int32),
        rope_lengths=jnp.array([count], jnp.int32),
        block_table=jnp.arange(num_pages, dtype=jnp.int32)[None],
    )

    def run(params, inputs):
        pages = KVPages.create(decoder.config, num_pages, page_size=_PAGE, dtype=decoder.dtype)
        return attention_moments(decoder, params, inputs, pages)

    return jax.jit(run)(params, inputs)


FIT_TEXT = """\
A reader who opens an old atlas finds coasts that no longer run where the engraver drew them. Rivers have moved, harbours have
filled with sand, and a village that once stood an hour from the sea now has boats in its main street. Maps age as people do:
slowly, then all at once. The surveyor's answer was to measure again; ours is to ask a satellite, which measures everything, every
day, and forgets nothing. Yet both of them had to decide what to leave out, and that decision is the map.

## How to brew coffee for four
1. Heat 640 ml of water to about 93 degrees.
2. Grind 40 g of beans, medium coarse, and rinse the paper filter.
3. Pour 80 ml, wait 30 seconds, then pour the rest in three turns; the whole should take 3:30 minutes.

```python
def median(values: list[float]) -> float:
    \"\"\"The middle value; the mean of the two middle ones if there is an even number of them.\"\"\"
    ordered = sorted(values)
    half = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[half]
    return (ordered[half - 1] + ordered[half]) / 2

for name, rows in {"north": [3.5, 1.25, 8.0], "south": [2, 4]}.items():
    print(f"{name}: {median(rows):.2f}")
```

User: Can you explain why the sky is blue, in one paragraph?
Assistant: Sunlight holds all colours. On its way through the air, light of short wavelengths is scattered far more than light of
long ones, by the fourth power of the ratio, so that blue comes to your eye from every direction while red passes almost straight
through. At sunset the path is longer; most of the blue is gone before it arrives, and what is left is orange.
User: And why is it not violet then?
Assistant: Good question! The sun sends less violet than blue, some of it is absorbed high up, and our eyes see it less well.

{"order": 18342, "customer": {"name": "Ana Costa", "city": "Porto"}, "items": [{"sku": "B-204", "count": 2}], "paid": true}

Am Morgen lag Nebel ueber dem Fluss, und die Faehre fuhr erst gegen neun. Wer warten musste, trank Tee und las die alte Zeitung.
Le train de 8 h 12 est parti sans nous ; il a fallu attendre le suivant, et la pluie n'a pas cesse de tomber.
La clase empieza a las diez. Los estudiantes traen sus cuadernos, y la profesora escribe tres preguntas en la pizarra.

| year | rainfall (mm) | mean temperature |
|------|---------------|------------------|
| 2019 | 812           | 11.4             |
| 2020 | 640           | 12.1             |
| 2021 | 905           | 10.8             |

Theorem. There are infinitely many primes. Proof. Suppose there were only p1, ..., pn. Let N = p1 * p2 * ... * pn + 1.
No p_i divides N, for each leaves the remainder 1; but N > 1 has a prime divisor, which is therefore none of them. Contradiction.

SELECT city, COUNT(*) AS orders, AVG(total) FROM sales WHERE day >= '2024-01-01' GROUP BY city ORDER BY orders DESC LIMIT 5;
<p class="note">Prices include tax. See <a href="/terms">the terms</a> for details.</p>
$ git log --oneline | head -3
4f1c2aa Fix rounding of negative amounts
"What shall we do now?" she asked. Nobody answered. Far below, a dog barked twice, and the lamps along the quay went out one by one.
"""
"""Our own words, of the kinds that models are asked about."""
