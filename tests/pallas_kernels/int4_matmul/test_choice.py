"""The choice of kernel fits every real shape, and the tables are read."""

import json
from pathlib import Path

import jax.numpy as jnp
import pytest

from pallas_kernels.int4_matmul import choice
from pallas_kernels.int4_matmul.api import int4_matmul_tiles
from pallas_kernels.int4_matmul.cases import all_cases
from pallas_kernels.int4_matmul.choice import Shape, choose, fits
from pallas_kernels.int4_matmul.mosaic_stream import StreamConfig
from pallas_kernels.int4_matmul.mosaic_wgmma import WgmmaConfig
from pallas_kernels.int4_matmul.tiles import groups_per_tile
from pallas_kernels.int4_matmul.warp_cut import WarpConfig

CASES = all_cases()
ROWS = (1, 2, 5, 8, 16, 17, 32, 33, 64, 65, 128, 200, 256, 512, 2048, 8192)
TABLES = sorted((Path(choice.__file__).parent / "tuned").glob("*.json"))


def test_there_are_shapes_of_every_model_and_cut():
    assert len(CASES) > 60
    assert {(4096, 28672), (8192, 57344), (896, 1152), (29568 // 4, 8192)} <= {(case.k, case.n) for case in CASES}


def test_every_real_shape_has_a_kernel_that_fits():
    for case in CASES:
        for m in ROWS:
            shape = Shape(m, case.k, case.n, case.group_size)
            config = choose(shape)
            assert config is not None
            assert fits(config, shape), (shape, config)
            if m <= 16:
                assert isinstance(config, WarpConfig), f"{shape} is a stream of weights"
            if m > choice.MOST_WARP_TOKENS:
                assert isinstance(config, WgmmaConfig | StreamConfig)


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
        assert fits(choice.KINDS[e["kernel"]](**e["config"]), shape), e


def test_a_measured_shape_takes_its_entry_and_a_near_one_the_nearest():
    measured = choose(Shape(1, 4096, 28672, 128))
    assert measured == WarpConfig(2, 16, 3, 132)
    assert choose(Shape(1, 4096, 27648, 128)) == measured, "3 % fewer outputs"
    assert choose(Shape(40, 4096, 28672, 128)) == choose(Shape(64, 4096, 28672, 128)), (
        "the next larger number of tokens"
    )
    assert choose(Shape(100_000, 4096, 28672, 128)) == choose(Shape(2048, 4096, 28672, 128))


def test_many_measured_tokens_stand_for_more_and_few_do_not(monkeypatch):
    few, some, many = WarpConfig(2, 8, 3), WgmmaConfig(2, 128, 4, 2), WgmmaConfig(2, 256, 3)
    shapes = [Shape(m, 4096, 4096, 128) for m in (1, 2, 256, 257, 2048, 2049, 9999)]
    entries = ((shapes[0], few), (shapes[2], some), (shapes[4], many))
    monkeypatch.setattr(choice, "_table", lambda device: entries)
    assert [choose(shape) for shape in shapes] == [few, some, some, many, many, many, many]
    monkeypatch.setattr(choice, "_table", lambda device: entries[:2])
    assert choose(shapes[-1]) == choice.stream_rule(shapes[-1]), "a cut of 256 tokens in parts is none of thousands"


def test_a_shape_that_the_own_table_lacks_takes_the_h100s(monkeypatch):
    mine, theirs = WarpConfig(3, 8, 2), WarpConfig(2, 16, 3)
    tables = {"h200": ((Shape(1, 4096, 4096, 128), mine),), "h100": ((Shape(1, 4096, 28672, 128), theirs),)}
    monkeypatch.setattr(choice, "_table", tables.__getitem__)
    monkeypatch.setattr(choice, "device_name", lambda: "h200")
    assert choose(Shape(1, 4096, 4096, 128)) == mine
    assert choose(Shape(1, 4096, 28672, 128)) == theirs


def test_an_invariant_cut_does_not_depend_on_the_tokens():
    for case in CASES:
        cuts = {
            (c.rows, c.split)
            for c in (choice.invariant_config(Shape(m, case.k, case.n, case.group_size)) for m in ROWS)
        }
        assert len(cuts) == 1, "rows and parts decide the order of additions"


def test_a_kernel_for_few_tokens_can_not_be_the_same_in_every_batch():
    words, meta = jnp.zeros((1, 2, 1, 256), jnp.int32), jnp.zeros((1, 2, 1, 1, 16), jnp.int32)
    x = jnp.zeros((1, 128), jnp.bfloat16)
    with pytest.raises(ValueError, match="invariant=True has wgmma or the reference"):
        int4_matmul_tiles(x, words, meta, 0, outputs=32, group_size=128, invariant=True, implementation="warp")
