"""Which shapes are compiled, and which one a step gets."""

import pytest

from jaxdeploy.engine.buckets import Buckets


def test_every_step_finds_the_smallest_bucket_that_holds_it():
    buckets = Buckets.of(batch_size=48, prefill_tokens=3000)
    assert [bucket.tokens for bucket in buckets.decode] == [1, 2, 4, 8, 16, 32, 48]
    assert [bucket.tokens for bucket in buckets.prefill] == [16, 64, 256, 512, 1024, 2048, 3000]
    assert [bucket.rows for bucket in buckets.prefill] == [16, 48, 48, 48, 48, 48, 48]
    for rows in range(1, 49):
        assert buckets.fit([1] * rows, decode=True).rows == next(b.rows for b in buckets.decode if b.rows >= rows)
    assert buckets.fit([250, 6, 1], decode=False).tokens == 512
    assert buckets.fit([1] * 17, decode=False).tokens == 64
    with pytest.raises(ValueError, match="tokens=3001"):
        buckets.fit([3001], decode=False)


def test_steps_of_many_tokens_and_no_answers_can_have_shapes_of_their_own():
    buckets = Buckets.of(batch_size=256, prefill_tokens=2048, prompts_alone=True)
    shapes = [(bucket.tokens, bucket.rows, bucket.mixed) for bucket in buckets.prefill]
    assert shapes == [
        (16, 16, True), (64, 64, True), (256, 256, True), (512, 256, True),
        (1024, 16, False), (1024, 256, True), (2048, 32, False), (2048, 256, True),
    ]  # fmt: skip
    assert buckets.largest[1] == buckets.prefill[-1]

    def fitting(counts: list[int]) -> tuple[int, bool]:
        bucket = buckets.fit(counts, decode=False)
        return bucket.tokens, bucket.mixed

    assert fitting([2000]) == (2048, False)
    assert fitting([1, 1000]) == (1024, True) == fitting([2] * 40 + [700])
    assert fitting([600]) == (1024, False)
    assert fitting([300]) == (512, True)


@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (1, 7), (3, 16), (8, 512), (256, 4096), (128, 100)])
def test_samplers_hold_the_rows_of_their_buckets(batch, tokens):
    buckets = Buckets.of(batch_size=batch, prefill_tokens=tokens)
    decode, prefill = buckets.largest
    assert (decode.rows, prefill.tokens) == (batch, tokens)
    assert all(bucket.rows <= bucket.sampler_rows <= batch for bucket in buckets.all)
    assert all(bucket.rows <= bucket.tokens for bucket in buckets.all)
    assert buckets.sampler_rows[-1] == batch


def test_drafts_are_checked_in_buckets_of_their_own_unless_prompts_ride_along():
    buckets = Buckets.of(batch_size=48, prefill_tokens=1024, places=4)
    assert [(b.rows, b.tokens, b.checks) for b in buckets.checking] == [(1, 4, 4), (4, 16, 4), (16, 64, 4)]
    assert buckets.largest[2] == buckets.checking[-1]
    assert buckets.fit([4, 1, 3], decode=False) == buckets.checking[1]
    assert buckets.fit([1, 1], decode=True) == buckets.decode[1]
    assert buckets.fit([4, 5], decode=False).checks == 0, "5 tokens are a part of a prompt"
    assert buckets.fit([4] * 17, decode=False).checks == 0
    assert Buckets.of(batch_size=2, prefill_tokens=64, places=4).checking[-1].rows == 2
    alone = Buckets.of(batch_size=48, prefill_tokens=4096, places=5, prompts_alone=True)
    assert all(b.sampler_rows >= min(b.tokens, 5 * b.rows) for b in alone.prefill), "rows with drafts may ride along"
    assert Buckets.of(batch_size=48, prefill_tokens=1024).checking == ()
