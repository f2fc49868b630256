"""A decode step leaves what the next one is fed on the device; the host uploads only what that does not say."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny_engine import VOCABULARY, run_all, tiny_engine, tokens_of

from jaxdeploy.config.generation import GenerationConfig
from jaxdeploy.engine import scheduler
from jaxdeploy.engine.batch import StepLayout
from jaxdeploy.engine.buckets import Bucket
from jaxdeploy.engine.device_inputs import DeviceInputs, FedRow
from jaxdeploy.engine.engine import Engine
from jaxdeploy.engine.request import Request
from jaxdeploy.engine.scheduler import StepPlan

NEW = 30


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine()


@pytest.fixture
def plans(engine, monkeypatch) -> list[tuple[StepPlan, bool]]:
    """Every plan that is launched from now on, and whether it was uploaded."""
    found: list[tuple[StepPlan, bool]] = []
    launch, executor = engine.executor.launch, engine.executor

    def noting(plan: StepPlan):
        before = executor.uploads
        launched = launch(plan)
        found.append((plan, executor.uploads > before))
        return launched

    monkeypatch.setattr(executor, "launch", noting)
    return found


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.RandomState(seed).randint(1, VOCABULARY, length).tolist()


def submit(engine: Engine, *lengths: int, **options) -> None:
    for i, length in enumerate(lengths):
        config = GenerationConfig(max_new_tokens=NEW, ignore_eos=True, **options)
        engine.submit(Request(str(i), prompt(length, 50 + i), config))


def test_only_new_rows_and_new_pages_are_uploaded(engine, plans):
    submit(engine, 4)
    run_all(engine)
    uploaded = [plan.rows[0].start for plan, uploaded in plans if uploaded]
    assert uploaded == [0, 4, 8, 16, 24, 32], "the prompt, the first token of the answer, and each page of 8 tokens"
    assert len(plans) == NEW


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "random_seed": 3}, {"repetition_penalty": 1.3}], ids=str)
def test_tokens_are_those_of_steps_that_are_all_uploaded(engine, monkeypatch, options):
    submit(engine, 4, 9, 2, **options)
    answers = run_all(engine)
    uploads, steps = engine.executor.uploads, engine.executor.steps
    monkeypatch.setattr(FedRow, "goes_on_as", lambda fed, row: False)
    submit(engine, 4, 9, 2, **options)
    uploaded = run_all(engine)
    assert engine.executor.uploads - uploads == engine.executor.steps - steps
    for i in range(3):
        assert tokens_of(answers, str(i)) == tokens_of(uploaded, str(i))


class Packed(NamedTuple):
    """What a step was fed as the host would write it down, and whether the host uploaded it."""

    layout: StepLayout
    packed: np.ndarray
    uploaded: bool


@pytest.fixture
def packs(monkeypatch) -> list[Packed]:
    """Every step from now on."""
    found: list[Packed] = []
    missing = DeviceInputs.missing

    def noting(inputs: DeviceInputs, bucket: Bucket, plan: StepPlan) -> np.ndarray | None:
        layout = inputs._layouts[bucket]
        packed = layout.pack(plan)
        wanted = missing(inputs, bucket, plan)
        found.append(Packed(layout, packed, wanted is not None))
        return wanted

    monkeypatch.setattr(DeviceInputs, "missing", noting)
    return found


@pytest.mark.parametrize("options", [{}, {"cache_max_entry_count": 14}], ids=str)
def test_what_is_not_uploaded_is_what_the_step_before_left(packs, options):
    """Also where answers lose their pages and begin again."""
    engine = tiny_engine(max_batch_size=4, **options)
    rng = np.random.default_rng(1)
    for i in range(9):
        repeated = rng.integers(1, 5, 3).tolist() * 3
        config = GenerationConfig(max_new_tokens=int(rng.integers(2, 40)), ignore_eos=True)
        engine.submit(Request(str(i), repeated, config))
        for _ in range(int(rng.integers(0, 6))):
            engine.step()
    run_all(engine)
    left: dict[Bucket, np.ndarray] = {}
    for layout, packed, uploaded in packs:
        if not uploaded:
            np.testing.assert_array_equal(packed, left[layout.bucket])
        left[layout.bucket] = layout.advance(packed)
    assert sum(not uploaded for *_, uploaded in packs) > 20
    if "cache_max_entry_count" in options:
        assert engine.scheduler.preemptions


def test_the_device_advances_a_plan_as_the_host_does(engine, packs):
    submit(engine, 4, 7, 2)
    run_all(engine)
    layout, packed, _ = packs[1]
    assert layout.bucket == Bucket(4, 4, True, 4)
    on_device = jax.jit(layout.advance)(jnp.asarray(packed))
    np.testing.assert_array_equal(layout.advance(packed), on_device)
    before, after = layout.unpack(jnp.asarray(packed)), layout.unpack(jnp.asarray(on_device))
    changed = {
        name: np.asarray(getattr(after.model, name) - getattr(before.model, name)).tolist()
        for name in ("positions", "rows", "context_lens", "query_start", "rope_lengths")
    }
    assert changed == {
        "positions": [1, 1, 1, 0],
        "rows": [0] * 4,
        "context_lens": [1, 1, 1, 0],
        "query_start": [0] * 5,
        "rope_lengths": [0] * 4,
    }
    assert np.asarray(after.from_device)[:3].all()
    np.testing.assert_array_equal(after.model.block_table, before.model.block_table)
    difference = np.asarray(after.sampler_rows - before.sampler_rows)
    assert difference.tolist() == [[0] * 4, [0] * 4, [1, 1, 1, 0]]


def test_a_prefill_plan_stays():
    layout = StepLayout(Bucket(16, 4, False, 8), table_width=16, padding_slot=4)
    packed = np.arange(layout.size, dtype=np.int32)
    assert layout.advance(packed) is packed


def test_rows_near_the_end_of_their_pages_get_new_ones_together(engine, plans, monkeypatch):
    def uploads() -> int:
        plans.clear()
        submit(engine, 2, 4, 6, 7)
        run_all(engine)
        return sum(uploaded for _, uploaded in plans)

    together = uploads()
    monkeypatch.setattr(scheduler, "PLENTY", 1000)
    one_by_one = uploads()
    assert one_by_one > 1.5 * together


def test_pages_that_are_not_begun_are_given_back_when_others_need_them(monkeypatch):
    monkeypatch.setattr(scheduler, "PLENTY", 0)
    engine = tiny_engine(cache_max_entry_count=15, max_batch_size=3, enable_prefix_caching=False)
    submit(engine, 7, 3)
    outputs = [output for _ in range(3) for output in engine.step()]
    holds = [len(sequence.pages) for sequence in engine.scheduler.running]
    assert holds == [2, 2], "the second has 8 tokens at most, and a page ahead"
    engine.submit(Request("too large", prompt(90, 9), GenerationConfig(max_new_tokens=2, ignore_eos=True)))
    outputs += engine.step()
    assert [len(sequence.pages) for sequence in engine.scheduler.running] == [2, 2], "that would not do"
    engine.abort("too large")
    engine.submit(Request("large", prompt(88, 9), GenerationConfig(max_new_tokens=2, ignore_eos=True)))
    outputs += engine.step()
    assert [len(sequence.pages) for sequence in engine.scheduler.running] == [2, 1, 11]
    outputs += run_all(engine)
    assert engine.allocator.used_pages == 0
    for i in range(2):
        assert len(tokens_of(outputs, str(i))) == NEW
    assert len(tokens_of(outputs, "large")) == 2
