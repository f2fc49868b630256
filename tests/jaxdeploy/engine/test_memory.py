"""Sizing the cache from what is known: weights, state, compiled steps' buffers, a share of the rest."""

from dataclasses import dataclass

import jax
import pytest
from support.tiny_engine import CONFIG, tiny_engine, tiny_parameters

from jaxdeploy.cache.kv_pages import page_bytes
from jaxdeploy.cache.sizing import MARGIN_BYTES, tree_bytes
from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.engine import executor
from jaxdeploy.engine.buckets import Buckets
from jaxdeploy.engine.limits import Limits
from jaxdeploy.engine.memory import plan_memory, step_memory
from jaxdeploy.engine.program_cache import ProgramCache
from jaxdeploy.errors import ConfigError, MemoryBudgetError
from jaxdeploy.model.decoder import Decoder
from jaxdeploy.sampling.slots import SlotState

GIB = 2**30


@dataclass(frozen=True)
class Card:
    """A GPU of any size; the steps that size its cache are compiled for the CPU here."""

    limit: int
    platform: str = "gpu"

    def memory_stats(self) -> dict[str, int]:
        return {"bytes_limit": self.limit}


@pytest.fixture(scope="module")
def params() -> dict:
    return tiny_parameters()


def plan(params: dict, card: Card, **options):
    config = EngineConfig(
        **{"max_batch_size": 4, "cache_block_seq_len": 8, "max_prefill_token_num": 32, "dtype": "float32", **options}
    )
    limits = Limits.resolve(config, CONFIG, platform=card.platform)
    buckets = Buckets.of(batch_size=limits.batch_size, prefill_tokens=limits.prefill_tokens)
    return plan_memory(Decoder(CONFIG), params, config, limits, buckets, card)


@pytest.mark.parametrize("quant_policy", [0, 8])
def test_a_share_of_what_weights_and_steps_leave(params, quant_policy):
    card = Card(GIB)
    found = plan(params, card, quant_policy=quant_policy, cache_max_entry_count=0.5)
    one_page = page_bytes(CONFIG, quant_policy=quant_policy, page_size=8, dtype_bytes=4)
    assert found.weight_bytes == tree_bytes(params)
    assert found.step_bytes > 0
    assert found.page_bytes == one_page
    free = GIB - MARGIN_BYTES - found.weight_bytes - found.state_bytes - found.step_bytes
    assert found.num_pages == int(free * 0.5) // one_page
    assert found.pool_bytes == found.num_pages * one_page
    assert found.tokens == found.num_pages * 8


def test_step_buffers_cover_at_least_the_logits(params):
    config = EngineConfig(max_batch_size=4, cache_block_seq_len=8, max_prefill_token_num=32)
    limits = Limits.resolve(config, CONFIG, platform="cpu")

    def needed(batch: int, tokens: int) -> int:
        buckets = Buckets.of(batch_size=batch, prefill_tokens=tokens)
        return step_memory(Decoder(CONFIG), params, config, limits, buckets, ProgramCache(None))

    small, large = needed(1, 16), needed(4, 32)
    assert large > small >= CONFIG.vocab_size * 4
    assert large - small > 4 * CONFIG.vocab_size * 4, "scores of four rows are kept, too"


def test_state_bytes_are_those_of_the_real_state(params):
    found = plan(params, Card(GIB), cache_max_entry_count=16)
    assert found.state_bytes == tree_bytes(jax.eval_shape(lambda: SlotState.create(5, CONFIG.vocab_size)))


def test_a_number_of_pages_is_taken_as_it_is(params):
    assert plan(params, Card(GIB), cache_max_entry_count=16).num_pages == 16


def test_a_card_that_is_too_small_is_refused_with_the_numbers(params):
    with pytest.raises(MemoryBudgetError, match=r"gets 0 pages .*weights 0\.00 GiB.* of 0\.25 GiB"):
        plan(params, Card(GIB // 4))
    with pytest.raises(MemoryBudgetError, match="fewer than the 16 that one sequence needs"):
        plan(params, Card(GIB), cache_max_entry_count=3, session_len=128)


def test_a_cpu_gets_no_more_pages_than_sequences_can_fill(params):
    found = plan(params, Card(0, platform="cpu"), session_len=64)
    assert found.num_pages == 4 * 64 // 8
    assert found.step_bytes == 0


def test_session_len_beyond_the_models_positions_is_refused(params):
    with pytest.raises(ConfigError, match="session_len=129 is longer than the model's context of 128"):
        plan(params, Card(GIB), session_len=129)


@pytest.mark.parametrize(
    ("said", "raised", "match"),
    [
        (
            "RESOURCE_EXHAUSTED: Out of memory",
            MemoryBudgetError,
            r"no room for a KV cache of 0\.00 GiB .* than 64 asks for less",
        ),
        ("INTERNAL: broken", jax.errors.JaxRuntimeError, "INTERNAL: broken"),
    ],
)
def test_pages_that_find_no_room_are_said_with_the_way_out(monkeypatch, said, raised, match):
    def full(params, create):
        raise jax.errors.JaxRuntimeError(said)

    monkeypatch.setattr(executor, "allocate_beside", full)
    with pytest.raises(raised, match=match):
        tiny_engine()
