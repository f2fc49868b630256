"""Programs are compiled while weights are loaded, and are those that the weights need."""

from concurrent.futures import CancelledError

import jax
import pytest
from support.tiny_engine import CONFIG, run_all, tiny_engine, tiny_parameters, tokens_of
from support.tiny_text_model import write_text_model

from jaxdeploy import early_programs, loading
from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.config.generation import GenerationConfig
from jaxdeploy.early_programs import EarlyPrograms, described_weights
from jaxdeploy.engine.limits import Limits
from jaxdeploy.engine.request import Request
from jaxdeploy.errors import CheckpointError
from jaxdeploy.loading import load_engine

SIZES = {"max_batch_size": 1, "cache_max_entry_count": 16, "session_len": 64, "max_prefill_token_num": 32}


@pytest.fixture
def early(monkeypatch) -> list[EarlyPrograms]:
    """Every context that is made from now on; each compiles early, as on a GPU."""
    monkeypatch.setattr(early_programs, "pays_off", lambda platform: True)
    made: list[EarlyPrograms] = []

    def noting(*arguments) -> EarlyPrograms:
        made.append(EarlyPrograms(*arguments))
        return made[-1]

    monkeypatch.setattr(loading, "EarlyPrograms", noting)
    return made


@pytest.mark.parametrize("options", [{}, {"quant_policy": 4}, {"lm_head_bits": 8}, {"lm_head_bits": 4}], ids=str)
def test_an_engine_runs_what_was_compiled_while_it_loaded(early, tmp_path, options):
    loaded = load_engine(write_text_model("qwen2", tmp_path), EngineConfig(**SIZES, **options))
    try:
        programs = loaded.engine.executor.programs
        assert programs is early[0].programs()
        assert programs.fit(loaded.engine.executor.params)
        assert {"trace steps", "allocate pages"} <= set(loaded.engine.executor.start_seconds)
        loaded.engine.submit(Request("a", [3, 4, 5], GenerationConfig(max_new_tokens=4, ignore_eos=True)))
        assert len(tokens_of(run_all(loaded.engine), "a")) == 4
        assert loaded.engine.executor.compile_misses == 0
    finally:
        loaded.close()


def test_an_error_in_the_weights_is_told_without_compiling_everything(early, tmp_path, monkeypatch):
    folder = write_text_model("qwen2", tmp_path)

    def load(*arguments, **options):
        raise CheckpointError("tensor lm_head.weight is missing")

    def described(*arguments, **options):
        early[0]._cancelled.wait()
        return described_weights(*arguments, **options)

    monkeypatch.setattr(loading, "load_parameters", load)
    monkeypatch.setattr(early_programs, "described_weights", described)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
        load_engine(
            folder, EngineConfig(**{**SIZES, "session_len": 56})
        )  # of no test before this one: nothing is in the cache
    with pytest.raises(CancelledError):
        early[0].programs()


def test_on_a_cpu_nothing_is_compiled_early(tmp_path):
    options = EngineConfig(**SIZES)
    with EarlyPrograms(CONFIG, options, Limits.resolve(options, CONFIG, platform="cpu")) as early:
        pass
    assert early.programs() is None


def test_programs_of_other_weights_are_not_taken(caplog):
    engine = tiny_engine()
    programs, weights = engine.executor.programs, tiny_parameters()
    assert programs.fit(weights)
    assert not programs.fit(jax.tree.map(lambda leaf: leaf.astype("bfloat16"), weights))
    assert not programs.fit({**weights, "lm_head": None})


def test_described_weights_are_those_of_a_gpu():
    described = described_weights(CONFIG, "bfloat16", lm_head_bits=16, tiled=True)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), described)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, "bfloat16"), tiny_parameters())
