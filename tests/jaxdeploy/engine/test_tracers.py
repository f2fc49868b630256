"""Programs traced in other processes are those that this one would have traced."""

import logging
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from support.tiny_engine import CONFIG

from jaxdeploy.cache.kv_pages import KVPages
from jaxdeploy.engine import traced_program, tracers
from jaxdeploy.engine.batch import StepLayout
from jaxdeploy.engine.buckets import Bucket
from jaxdeploy.engine.program_set import ProgramSet
from jaxdeploy.engine.step import Scores
from jaxdeploy.engine.tracers import Tracers
from jaxdeploy.model.decoder import Decoder, random_parameters
from jaxdeploy.sampling.extent import Extent
from jaxdeploy.sampling.slots import SlotState
from pallas_kernels import device
from pallas_kernels.device import Gpu

BUCKET = Bucket(4, 4, True, 4)
SAMPLER = Extent.DRAW, 4


def programs(platform: str = "cpu") -> ProgramSet:
    dtype = "bfloat16" if platform == "gpu" else "float32"
    shapes = jax.eval_shape(
        lambda: (
            random_parameters(CONFIG, dtype),
            KVPages.create(CONFIG, 4, page_size=8, dtype=dtype),
            SlotState.create(5, CONFIG.vocab_size),
            {4: Scores.create(4, CONFIG.vocab_size)},
        )
    )
    layouts = {BUCKET: StepLayout(BUCKET, table_width=4, padding_slot=4)}
    return ProgramSet(Decoder(CONFIG, dtype), layouts, *shapes, platform)


def filled(shapes) -> tuple:
    """Small numbers that differ from leaf to leaf."""
    leaves, structure = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    made = [jnp.asarray(rng.integers(0, 4, leaf.shape)).astype(leaf.dtype) for leaf in leaves]
    return jax.tree.unflatten(structure, made)


def test_a_traced_program_computes_the_same_in_the_same_place():
    for name in (BUCKET, SAMPLER):
        program = programs()[name]
        here = program.lower().compile()
        there = traced_program.lower(program, traced_program.trace(program, "cpu")).compile()
        assert jax.tree.structure(there.out_tree) == jax.tree.structure(here.out_tree)
        assert there.memory_analysis().alias_size_in_bytes == here.memory_analysis().alias_size_in_bytes > 0
        results = [jax.tree.leaves(compiled(*filled(program.arguments))) for compiled in (here, there)]
        for a, b in zip(*results, strict=True):
            np.testing.assert_array_equal(a, b)


def test_what_a_gpu_runs_is_traced_without_one(monkeypatch):
    """With the kernels' choice for the GPU that is told."""
    monkeypatch.setattr(device, "_assumed", device.current_gpu())
    program = programs("gpu")[BUCKET]
    device.assume_gpu(Gpu((9, 0), "h200", 66))
    assert device.device_name() == "h200"
    exported = jax.export.deserialize(bytearray(traced_program.trace(program, "gpu")))
    assert exported.platforms == ("cuda",)
    assert "mosaic_gpu" in exported.mlir_module()


def test_processes_trace_what_is_asked_for():
    wanted = programs()
    with Tracers(1) as pool:
        pool.start()
        made = dict(pool.lower(wanted, [BUCKET, SAMPLER]))
    assert list(made) == [BUCKET, SAMPLER]
    arguments = filled(wanted[SAMPLER].arguments)
    expected = wanted[SAMPLER].lower().compile()(*filled(wanted[SAMPLER].arguments))
    found = made[SAMPLER].compile()(*arguments)
    np.testing.assert_array_equal(expected[1], found[1])


@pytest.mark.parametrize("command", ["import sys; sys.exit(3)", "import sys; sys.stdin.buffer.read(1); print('hello')"])
def test_a_process_that_fails_is_done_without(command, monkeypatch, caplog):
    start = partial(tracers.subprocess.Popen, stdin=-1, stdout=-1)
    monkeypatch.setattr(tracers.subprocess, "Popen", lambda *_, **__: start([tracers.sys.executable, "-c", command]))
    with caplog.at_level(logging.WARNING), Tracers(2) as pool:
        pool.start()
        made = dict(pool.lower(programs(), [SAMPLER]))
    assert list(made) == [SAMPLER]
    assert "goes on without it" in caplog.text


def test_none_is_started_for_nothing(monkeypatch):
    """As when all programs, or all but one, are in the program cache."""
    monkeypatch.setattr(tracers.subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    with Tracers(2) as pool:
        assert list(pool.lower(programs(), [])) == []
        assert [name for name, _ in pool.lower(programs(), [SAMPLER])] == [SAMPLER]


def test_a_cpu_has_none():
    assert Tracers.for_platform("cpu").count == 0
    with Tracers(0) as pool:
        assert [name for name, _ in pool.lower(programs(), [SAMPLER])] == [SAMPLER]


def test_a_set_without_devices_can_be_pickled():
    wanted = programs().placed(SingleDeviceSharding(jax.devices()[0]))
    again = pickle.loads(pickle.dumps(wanted.placed(None)))
    assert [again[name].name for name in again.names()] == [wanted[name].name for name in wanted.names()]
