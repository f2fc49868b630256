"""The choice of kernel fits every real shape, the table is read, and what tuning tries can be run."""

import json
from pathlib import Path

import jax
import pytest

from pallas_kernels import tune
from pallas_kernels.int4_matmul import choice
from pallas_kernels.int4_matmul.cases import all_cases
from pallas_kernels.int4_matmul.choice import Shape, choose, fits
from pallas_kernels.int4_matmul.mosaic_warp import WarpConfig
from pallas_kernels.int4_matmul.mosaic_wgmma import WgmmaConfig
from pallas_kernels.int4_matmul.tiles import groups_per_tile

CASES = all_cases()
ROWS = (1, 2, 5, 8, 16, 17, 32, 33, 64, 65, 128, 200, 256, 512, 2048, 8192)
TABLES = sorted((Path(choice.__file__).parent / "tuned").glob("*.json"))


def test_there_are_shapes_of_every_model_and_cut():
    assert len(CASES) > 60
    assert {(4096, 28672), (8192, 57344), (896, 1152), (29568 // 4, 8192)} <= {(case.k, case.n) for case in CASES}


@pytest.mark.parametrize("gated", [False, True])
def test_every_real_shape_has_a_kernel_that_fits(gated):
    for case in CASES:
        for m in ROWS:
            shape = Shape(m, case.k, case.n, case.group_size)
            if gated and case.n % 32:
                continue
            config = choose(shape, gated=gated)
            assert config is not None
            assert fits(config, shape, gated), (shape, config)
            if m <= 16:
                assert isinstance(config, WarpConfig), f"{shape} is a stream of weights"
            if m > choice.MOST_WARP_TOKENS:
                assert isinstance(config, WgmmaConfig)


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (12, 0)])
def test_elsewhere_few_tokens_have_a_kernel_that_fits_and_many_take_the_reference(capability):
    most = choice.SHARED_OF_BLOCK[capability] * 1024
    for case in CASES:
        for m in ROWS:
            shape = Shape(m, case.k, case.n, case.group_size)
            config = choose(shape, capability=capability)
            if m > choice.MOST_WARP_TOKENS:
                assert config is None
                continue
            assert isinstance(config, WarpConfig), shape
            _, rounds = config.grid(shape.strips)
            assert config.shared_bytes(m, groups_per_tile(case.group_size), rounds) <= most


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_tables_hold_kernels_that_fit(path):
    entries = json.loads(path.read_text())["entries"]
    assert entries
    for e in entries:
        shape = Shape(e["m"], e["k"], e["n"], e["group_size"])
        assert fits(choice.KINDS[e["kernel"]](**e["config"]), shape, gated=False), e


def test_a_measured_shape_takes_its_entry_and_a_near_one_the_nearest():
    measured = choose(Shape(1, 4096, 28672, 128))
    assert measured == WarpConfig(2, 16, 3, 132)
    assert choose(Shape(1, 4096, 27648, 128)) == measured, "3 % fewer outputs"
    assert choose(Shape(40, 4096, 28672, 128)) == choose(Shape(64, 4096, 28672, 128)), (
        "the next larger number of tokens"
    )
    assert choose(Shape(100_000, 4096, 28672, 128)) == choose(Shape(2048, 4096, 28672, 128))


def test_the_most_tokens_that_were_measured_stand_for_more(monkeypatch):
    few, many = WarpConfig(2, 8, 3, 132), WgmmaConfig(2, 128, 4, 1)
    entries = ((Shape(1, 4096, 4096, 128), few), (Shape(512, 4096, 4096, 128), many))
    monkeypatch.setattr(choice, "_table", lambda device: entries)
    assert [choose(Shape(m, 4096, 4096, 128)) for m in (1, 2, 512, 513, 4096)] == [few, many, many, many, many]


def test_an_invariant_cut_does_not_depend_on_the_tokens():
    for case in CASES:
        cuts = {
            (c.rows, c.split)
            for c in (choice.invariant_config(Shape(m, case.k, case.n, case.group_size)) for m in ROWS)
        }
        assert len(cuts) == 1, "rows and parts decide the order of additions"


@pytest.mark.parametrize("m", [1, 16, 64, 256])
def test_candidates_hold_the_rule_and_fit(m):
    shape = Shape(m, 4096, 6144, 128)
    found = tune.candidates(shape)
    rule = choice.warp_rule(shape, gated=False) if m <= 16 else choice.wgmma_rule(shape)
    assert rule in found
    assert len(found) == len(set(found)) > 5
    assert all(fits(config, shape, gated=False) for config in found)


def test_a_tuned_shape_replaces_its_entry():
    shape = Shape(1, 4096, 4096, 128)
    old = tune.entry(tune.Timed(shape, WarpConfig(1, 8, 2), 9.0))
    new = tune.entry(tune.Timed(shape, WarpConfig(2, 8, 4), 5.0))
    other = tune.entry(tune.Timed(Shape(64, 4096, 4096, 128), WgmmaConfig(2, 64, 4, 2), 7.0))
    assert tune.merged({"entries": [other, old]}, [new]) == [new, other]
    assert json.loads(json.dumps(new))["config"] == {"strips": 2, "warps": 8, "stages": 4, "blocks": 0}


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="says what happens without a GPU")
def test_tuning_without_a_gpu_says_so(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tune", "int4_matmul"])
    assert tune.main() == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
