"""The tables are what they say, and what is chosen by them decides over a result's bits by the model alone."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pallas_kernels.paged_attention import choice, tuning
from pallas_kernels.paged_attention.cases import CASES
from pallas_kernels.paged_attention.choice import Entry, choose_decode, choose_prefill, decode_rule, prefill_rule
from pallas_kernels.paged_attention.decode_layout import DecodeConfig, Shape, reason_not
from pallas_kernels.paged_attention.fragments import Stored
from pallas_kernels.paged_attention.prefill_shape import PrefillShape
from pallas_kernels.paged_attention.reference import decode_reference, prefill_reference

tuning_candidates = tuning.candidates
TABLES = sorted(Path(choice.__file__).with_name("tuned").glob("*.json"))


def decode_shape(head_dim=128, bits=16, heads=32, kv_heads=8, page=64, batch=8, width=128, queries=1) -> Shape:
    return Shape(
        batch=batch, heads=heads, kv_heads=kv_heads, pages=512, page_size=page, table_width=width,
        stored=Stored(head_dim, bits), query_dtype="bf16", scale=0.1, soft_cap=0.0, queries=queries,
    )  # fmt: skip


def prefill_shape(head_dim=128, bits=16, page=64, tokens=300, rows=8) -> PrefillShape:
    return PrefillShape(
        tokens=tokens, heads=32, kv_heads=8, head_dim=head_dim, pages=512, page_size=page, rows=rows, dtype="bfloat16",
        bits=bits, scale=0.1, soft_cap=0.0,
    )  # fmt: skip


def use(monkeypatch, *entries: Entry) -> None:
    monkeypatch.setattr(choice, "entries", lambda device: entries)


def entry(**fields) -> Entry:
    usual = {"kernel": "decode", "head_dim": 128, "group": 4, "bits": 16, "page_size": 64, "queries": 1, "us": {}}
    return Entry(**(usual | fields))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_entries_fit_and_each_shape_has_one(path):
    table = json.loads(path.read_text(encoding="utf-8"))
    assert {"device", "jax"} <= table.keys()
    entries = [Entry(**e) for e in table["entries"]]
    shapes = {(e.kernel, e.head_dim, e.group, e.bits, e.page_size, e.queries) for e in entries}
    assert len(shapes) == len(entries) > 0
    for e in entries:
        assert all(us > 0 for us in e.us.values())
        if e.kernel == "decode":
            shape = decode_shape(e.head_dim, e.bits, 2 * e.group, 2, e.page_size, choice.USUAL_BATCH, queries=e.queries)
            assert reason_not(shape, DecodeConfig(**e.config)) is None
        else:
            assert replace(prefill_shape(e.head_dim, e.bits, e.page_size), **e.config).reason_not is None


def test_the_nearest_entry_is_taken_and_a_far_one_is_not(monkeypatch):
    near, far = {"tile": 64, "chunk": 256, "groups": 1}, {"tile": 64, "chunk": 1024, "groups": 1}
    use(monkeypatch, entry(group=8, config=far), entry(config=near), entry(bits=8, config=far))
    assert choose_decode(decode_shape()) == DecodeConfig(**near)
    assert choose_decode(decode_shape(heads=40)) == DecodeConfig(**near)
    assert choose_decode(decode_shape(heads=64)) == DecodeConfig(**far)
    for other in (decode_shape(bits=4), decode_shape(head_dim=64), decode_shape(queries=4), decode_shape(kv_heads=32)):
        assert choose_decode(other) == decode_rule(other)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.model}-{c.bits}")
def test_every_case_has_a_config_that_fits(case):
    for queries in (1, 4):
        sizes = (case.head_dim, case.bits, case.heads, case.kv_heads, case.page_size)
        shape = decode_shape(*sizes, queries=queries)
        assert reason_not(shape, choose_decode(shape)) is None
    assert choose_prefill(prefill_shape(case.head_dim, case.bits)).reason_not is None


def test_bits_do_not_depend_on_the_step(monkeypatch):
    # With many rows a large tile leaves no room for a third pipeline: small steps must not have it either.
    large = {"tile": 128, "chunk": 512, "groups": 3, "stages": 2}
    sizes = {"head_dim": 64, "bits": 16, "heads": 48}
    few, many = decode_shape(batch=1, **sizes), decode_shape(batch=choice.USUAL_BATCH, **sizes)
    use(monkeypatch, entry(head_dim=64, group=6, config=large))
    assert reason_not(few, DecodeConfig(**large)) is None
    assert reason_not(many, DecodeConfig(**large)) is not None
    chosen = {(c.tile, c.chunk) for c in map(choose_decode, (few, many, replace(few, table_width=4096, pages=9)))}
    assert len(chosen) == 1
    use(monkeypatch, entry(kernel="prefill", queries=0, config={"key_tile": 64, "stages": 3}))
    tiles = {choose_prefill(prefill_shape(tokens=t, rows=r)).key_tile for t in (1, 300, 9000) for r in (1, 256)}
    assert tiles == {64}


def test_what_does_not_fit_falls_back_to_the_rule(monkeypatch):
    use(monkeypatch, entry(config={"tile": 64, "chunk": 512, "groups": 2, "stages": 100}))
    assert choose_decode(decode_shape()) == decode_rule(decode_shape())
    use(monkeypatch, entry(kernel="prefill", queries=0, config={"key_tile": 128, "stages": 9}))
    assert choose_prefill(prefill_shape()) == prefill_rule(prefill_shape())


def test_the_least_loss_over_all_workloads_wins():
    times = {0: {"a": 10.0, "b": 40.0}, 1: {"a": 11.0, "b": 22.0}, 2: {"a": 30.0, "b": 20.0}, 3: {"a": 1.0}}
    assert tuning.fastest(times) == 1
    with pytest.raises(ValueError, match=r"no candidate was timed at all of \['a', 'b'\]"):
        tuning.fastest({0: {"a": 1.0}, 1: {"b": 1.0}})


def test_a_new_entry_takes_the_place_of_its_shape():
    old, new = entry(config={"tile": 64}, us={"1 x 1": 2.0}), entry(config={"tile": 128}, us={"1 x 1": 1.0})
    other = entry(bits=8, config={})
    table = {"entries": tuning.merged({"entries": tuning.merged({}, old)}, other)}
    configs = [(e["bits"], e["config"]) for e in tuning.merged(table, new)]
    assert configs == [(8, {}), (16, {"tile": 128})]


def test_a_sweep_writes_a_table_that_is_read_back(monkeypatch, tmp_path):
    """With the reference for the kernels, and times made up."""
    made = []

    def decode(q, context, starts=None, *, scale, config, queries=1):
        made.append(config)
        if starts is None:
            return decode_reference(q, context, scale=scale)
        return prefill_reference(q, context, starts, scale=scale)

    def prefill(q, context, starts, *, scale, key_tile=128, stages=2):
        return prefill_reference(q, context, starts, scale=scale)

    times = iter([5.0, 3.0, 9.0, 7.0, 2.0, 4.0])
    for name, fake in {
        "mosaic": SimpleNamespace(decode=decode, prefill=prefill),
        "microseconds": lambda *arguments: next(times),
        "candidates": lambda kernel: tuning_candidates(kernel)[:2],
        "SHAPES": (("tiny", 4, 2, 32),),
        "L2_BYTES": 1,
        "DECODE": ((2, 40),),
        "PREFILL": ((1, 40),),
    }.items():
        monkeypatch.setattr(tuning, name, fake)
    parser = argparse.ArgumentParser()
    tuning.add_arguments(parser)
    path = tmp_path / "any.json"
    options = parser.parse_args(["--bits", "8", "--queries", "1,3", "--models", "tiny", "--out", str(path)])
    assert tuning.sweep_and_write(options) == 2, "no GPU"
    monkeypatch.setattr(tuning, "reason_no_gpu", lambda: None)
    assert tuning.sweep_and_write(options) == 0
    assert DecodeConfig(64, 256, 2) in made
    monkeypatch.setattr(choice, "table_path", lambda device: path)
    found = choice.entries.__wrapped__("any")
    assert [(e.kernel, e.queries, e.us) for e in found] == [
        ("decode", 1, {"2 x 40": 3.0}), ("decode", 3, {"2 x 40": 7.0}), ("prefill", 0, {"1 x 40": 2.0})
    ]  # fmt: skip
