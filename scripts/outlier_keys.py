"""What outlier channels in keys do to an int4 KV cache: the demo model given such channels, with and without rotation.

    python scripts/outlier_keys.py --max-tokens 2048

``scale`` multiplies four key channels of every head by 30 and divides the queries': the model stays the same function. ``bias``
adds biases of up to 120 to slowly turning key channels, as Qwen2.5 has them. Perplexity: Python's help pages, windows of 512.
"""

import argparse
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdeploy import functional as jd
from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.config.model import ModelConfig
from jaxdeploy.engine.limits import Limits
from jaxdeploy.engine.scoring import Scorer
from jaxdeploy.kv_rotation import fit_rotation
from jaxdeploy.model.decoder import Decoder
from jaxdeploy.model.rotation import plain_bases

KINDS = ("none", "scale", "bias")
_WINDOW = 512


def with_outliers(kind: str, config: ModelConfig, params: dict[str, Any]) -> tuple[ModelConfig, dict[str, Any]]:
    """The model with outlier channels in its keys."""
    layers, heads, kv_heads, size = config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim
    attention, half = params["layers"]["attention"], size // 2
    qkv = {name: np.array(array) for name, array in attention["qkv"].items()}
    if kind == "scale":
        weight = qkv["weight"].reshape(layers, heads + 2 * kv_heads, size, -1)
        channels = np.array([3, 3 + half, 20, 20 + half])  # pairs that RoPE turns into each other
        weight[:, heads : heads + kv_heads, channels] *= 30
        weight[:, :heads, channels] /= 30
        qkv["weight"] = weight.reshape(qkv["weight"].shape)
    if kind == "bias":
        bias = np.zeros((layers, heads + 2 * kv_heads, size), np.float32)
        bias[:, heads : heads + kv_heads, [half - 3, half - 1, size - 1]] = 50, 80, -120
        qkv["bias"] = bias.reshape(layers, -1)
        config = replace(config, qkv_bias=True)
    changed = {**attention, "qkv": {name: jnp.asarray(array) for name, array in qkv.items()}}
    return config, {**params, "layers": {**params["layers"], "attention": changed}}


def perplexity(config: ModelConfig, params: dict[str, Any], policy: int, ids: list[int]) -> float:
    """exp of the mean negative log-likelihood over whole windows."""
    limits = Limits.resolve(EngineConfig(quant_policy=policy), config, platform="cpu")
    scorer = Scorer(Decoder(config), params, limits, quant_policy=policy, longest=_WINDOW)
    starts = range(0, len(ids) - _WINDOW + 1, _WINDOW)
    losses = [-scorer.token_logprobs(ids[start : start + _WINDOW]) for start in starts]
    return float(np.exp(np.mean(np.concatenate(losses), dtype=np.float64)))


def main() -> None:
    """Print a row per kind of outlier."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--max-tokens", type=int, default=2048)
    args = parser.parse_args()
    import pydoc_data.topics

    topics = pydoc_data.topics.topics
    model = jd.load(None)
    ids = model.tokenizer.encode("\n\n".join(topics[name] for name in sorted(topics)), add_special=True)
    ids = ids[: args.max_tokens]
    print(f"{'outliers':<10}{'float':>10}{'int4':>12}{'Hadamard':>12}{'fitted':>12}")
    for kind in KINDS:
        config, params = with_outliers(kind, model.decoder.config, model.params)
        found = [perplexity(config, params, policy, ids) for policy in (0, 4)]
        turned = config.with_rotation(foldable=False)
        bases = plain_bases(config.num_layers, config.num_kv_heads, config.head_dim, "float32")
        attention = {**params["layers"]["attention"], "key_basis": bases, "query_basis": bases}
        params = {**params, "layers": {**params["layers"], "attention": attention}}
        found.append(perplexity(turned, params, 4, ids))
        found.append(perplexity(turned, fit_rotation(Decoder(turned), params, model.tokenizer), 4, ids))
        print(f"{kind:<10}{found[0]:>10.3f}" + "".join(f"{value:>12.3f}" for value in found[1:]), flush=True)


if __name__ == "__main__":
    main()
