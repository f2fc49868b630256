"""What an engine would hold in a GPU's memory, told without the GPU and without the weights."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax.core import meta

from jaxdeploy.cache.kv_pages import page_bytes
from jaxdeploy.cache.sizing import MARGIN_BYTES, MemoryPlan, count_pages, tree_bytes
from jaxdeploy.config.engine import QUANT_POLICIES, EngineConfig
from jaxdeploy.config.model import ModelConfig
from jaxdeploy.config.quantization import QuantizationConfig
from jaxdeploy.engine.buckets import Buckets
from jaxdeploy.engine.limits import Limits
from jaxdeploy.model.decoder import describe_parameters
from jaxdeploy.sampling.slots import SlotState

AWQ = QuantizationConfig(method="awq", group_size=128, zero_point=True)
"""What ``jaxdeploy lite auto_awq`` writes."""
LIVE_LOGITS = 3
"""Copies of the logits that a step holds: the model's, the one before them, and the sampler's edited ones."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """One line of the table: how the weights and the cache are stored, its share of the memory, and what that comes to."""

    weights: str
    kv_bits: int
    share: float
    plan: MemoryPlan


def forecast_table(
    config: ModelConfig, options: EngineConfig, gpu_bytes: int, shares: Iterable[float] = (0.8, 0.4)
) -> Iterator[Forecast]:
    """Dense and int4 weights by each ``quant_policy`` by each share; a checkpoint that is int4 already stays that."""
    kinds = (
        {"W4A16": config} if config.quantization else {config.dtype: config, "W4A16": replace(config, quantization=AWQ)}
    )
    for name, model in kinds.items():
        for quant_policy in QUANT_POLICIES:
            for share in shares:
                chosen = replace(options, quant_policy=quant_policy, cache_max_entry_count=share)
                bits = quant_policy or 8 * jnp.dtype(model.dtype).itemsize
                yield Forecast(name, bits, share, forecast(model, chosen, gpu_bytes))


def forecast(config: ModelConfig, options: EngineConfig, gpu_bytes: int) -> MemoryPlan:
    """The plan that an engine on a GPU of ``gpu_bytes`` would make, but for its step buffers, which are estimated.

    It has no pages if there is no room for any; the engine would refuse to start.
    """
    limits = Limits.resolve(options, config, platform="gpu")
    params = meta.unbox(describe_parameters(config, limits.dtype))
    state = jax.eval_shape(lambda: SlotState.create(limits.batch_size + 1, config.vocab_size))
    weights, state_bytes, steps = tree_bytes(params), tree_bytes(state), estimate_step_bytes(config, limits)
    itemsize = jnp.dtype(limits.dtype).itemsize
    one_page = page_bytes(config, quant_policy=options.quant_policy, page_size=limits.page_size, dtype_bytes=itemsize)
    pages = count_pages(
        options.cache_max_entry_count,
        free_bytes=gpu_bytes - weights - state_bytes - steps - MARGIN_BYTES,
        page_bytes=one_page,
        least=0,
        most=None,
        what="",
    )
    return MemoryPlan(weights, steps, state_bytes, one_page, pages, limits.page_size, gpu_bytes)


def estimate_step_bytes(config: ModelConfig, limits: Limits) -> int:
    """Temporary buffers of the largest step: the widest activations of a layer, the residual stream, and the logits."""
    bucket = Buckets.of(batch_size=limits.batch_size, prefill_tokens=limits.prefill_tokens).prefill[-1]
    heads = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    # The gated product stands beside what it is made of; so do q, k and v beside the attention's output.
    widest = max(3 * config.intermediate_size, heads) + 3 * config.hidden_size
    logits = LIVE_LOGITS * bucket.sampler_rows * config.vocab_size * 4
    return bucket.tokens * widest * jnp.dtype(limits.dtype).itemsize + logits
