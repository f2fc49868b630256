"""Which shapes are compiled, and which one a step gets."""

import pytest

from jaxdeploy.engine.buckets import Buckets


def test_every_step_finds_the_smallest_bucket_that_holds_it():
    buckets = Buckets.of(batch_size=48, prefill_tokens=3000)
    assert [bucket.tokens for bucket in buckets.decode] == [1, 2, 4, 8, 16, 32, 48]
    assert [bucket.tokens for bucket in buckets.prefill] == [16, 64, 256, 512, 1024, 2048, 3000]
    assert [bucket.rows for bucket in buckets.prefill] == [16, 48, 48, 48, 48, 48, 48]
    for rows in range(1, 49):
        assert buckets.fit(tokens=rows, rows=rows, decode=True).rows == next(
            b.rows for b in buckets.decode if b.rows >= rows
        )
    assert buckets.fit(tokens=257, rows=3, decode=False).tokens == 512
    assert buckets.fit(tokens=17, rows=17, decode=False).tokens == 64
    with pytest.raises(ValueError, match="tokens=3001"):
        buckets.fit(tokens=3001, rows=1, decode=False)


@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (1, 7), (3, 16), (8, 512), (256, 4096), (128, 100)])
def test_samplers_hold_the_rows_of_their_buckets(batch, tokens):
    buckets = Buckets.of(batch_size=batch, prefill_tokens=tokens)
    assert buckets.largest[0].rows == batch
    assert buckets.largest[1].tokens == tokens
    assert all(bucket.rows <= bucket.sampler_rows <= batch for bucket in buckets.all)
    assert all(bucket.rows <= bucket.tokens for bucket in buckets.all)
    assert buckets.sampler_rows[-1] == batch
