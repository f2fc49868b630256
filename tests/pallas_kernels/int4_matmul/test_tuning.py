"""What tuning tries for the int4 matmul: usual models first, few candidates, and all of them can be run."""

import argparse
import json

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.int4_matmul import choice, tuning
from pallas_kernels.int4_matmul.choice import Shape, fits
from pallas_kernels.int4_matmul.mosaic_stream import StreamConfig
from pallas_kernels.int4_matmul.mosaic_wgmma import WgmmaConfig
from pallas_kernels.int4_matmul.warp_cut import WarpConfig


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    tuning.add_arguments(parser)
    return parser.parse_args(arguments)


def test_usual_models_come_first_and_whole_models_before_parts():
    shapes = tuning.shapes(parsed())
    assert len(shapes) == len(set(shapes)), "each shape once"
    assert shapes[:5] == [Shape(m, 4096, 6144, 128) for m in (1, 16, 64, 256, 2048)], (
        "Llama-3-8B's first matrix, all tokens"
    )
    position = {(s.k, s.n): i for i, s in reversed(list(enumerate(shapes)))}
    usual = [(4096, 28672), (2048, 16384), (3584, 37888)]  # Llama-3-8B, InternLM2.5-1.8B, Qwen2.5-7B
    others = [(8192, 57344), (5120, 27648)]  # Llama-3-70B, Qwen2.5-14B
    halves = [(4096, 14336), (2048, 8192)]
    order = [position[s] for s in (*usual, *others, *halves)]
    assert order == sorted(order[:3]) + sorted(order[3:5]) + sorted(order[5:])


def test_shapes_can_be_picked():
    assert tuning.shapes(parsed("--models", "llama-3-8b", "--tokens", "3", "--shards", "2")) == [
        Shape(3, k, n, 128) for k, n in ((4096, 3072), (2048, 4096), (4096, 14336), (7168, 4096))
    ]
    with pytest.raises(ValueError, match=r"unknown models \['llama-9'\]; there are llama-3-8b,"):
        tuning.shapes(parsed("--models", "llama-9"))


@pytest.mark.parametrize("m", tuning.FIRST_TOKENS)
def test_candidates_are_few_hold_the_rule_and_what_won_and_fit(m):
    for case in tuning.shapes(parsed("--tokens", str(m))):
        found = tuning.candidates(case)
        rules = [choice.warp_rule(case)] if m <= choice.MOST_WARP_TOKENS else []
        rules += [choice.wgmma_rule(case), choice.stream_rule(case)]
        assert found[0] in rules
        assert choice.choose(case) in found
        assert 2 <= len(set(found)) == len(found) <= 32
        assert all(fits(config, case) for config in found)
        assert not any(isinstance(c, WgmmaConfig) and c.rows * c.tokens > 512 for c in found), "more spill"


def test_the_wide_matrix_of_llama_3_8b_tries_a_shared_last_round():
    found = tuning.candidates(Shape(256, 4096, 28672, 128))
    assert {StreamConfig(2, 256, 3, 1, 132), StreamConfig(2, 256, 3, 2, 66), StreamConfig(2, 256, 3, 2)} <= set(found)


def test_a_program_calls_enough_layers_to_defeat_the_cache_but_not_more():
    sizes = {
        tuning.calls(s) * s.strips * s.blocks * 1024
        for s in tuning.shapes(parsed("--tokens", "1"))
        if s.k * s.n > 2**23
    }
    assert min(sizes) >= tuning.STACK_BYTES
    assert all(4 <= tuning.calls(s) <= 64 for s in tuning.shapes(parsed()))


def test_an_entry_is_a_line_of_the_table():
    shape = Shape(1, 4096, 4096, 128)
    line = json.loads(json.dumps(tuning.entry(shape, WarpConfig(2, 8, 4), 5.0)))
    assert line["config"] == {"strips": 2, "warps": 8, "stages": 4, "blocks": 0}
    assert choice.KINDS[line["kernel"]](**line["config"]) == WarpConfig(2, 8, 4)
    assert tuning.key_of(line) == tuning.key(shape)


def test_a_result_that_differs_from_the_rules_is_refused(monkeypatch):
    monkeypatch.setattr(tuning, "microseconds", lambda program, calls, *arrays: 7.0)
    shape = Shape(2, 128, 32, 128)
    time = tuning.timer(shape)

    def program(error):
        return lambda x, words, meta: [jnp.zeros(1), jnp.ones((2, 32)) * (1 + error)]

    assert time(program(0)) == 7.0
    assert time(program(1e-3)) == 7.0
    for wrong in (0.1, np.nan):
        with pytest.raises(ArithmeticError, match="differs by"):
            time(program(wrong))


def test_a_program_takes_the_arrays_that_the_timer_gives(monkeypatch):
    def multiply(config, shape, x, words, meta, layer):
        return x[:, :1].astype(jnp.float32) * (words[layer, 0, 0, 0] + meta[layer, 0, 0, 0, 0])

    programs = []
    monkeypatch.setattr(tuning, "multiply", multiply)
    monkeypatch.setattr(tuning, "microseconds", lambda program, calls, *arrays: programs.append(program) or 7.0)
    shape = Shape(3, 576, 40, 64)  # neither inputs nor outputs are whole tiles
    program = tuning.compiled(shape, WarpConfig(2, 4, 2))
    assert tuning.timer(shape)(program) == 7.0
    assert programs == [program]
