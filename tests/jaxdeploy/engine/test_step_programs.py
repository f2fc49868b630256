"""What the model's programs are for a GPU; looked at on a CPU, not compiled."""

from dataclasses import replace

import jax
import pytest
from support.tiny_engine import CONFIG

from jaxdeploy.cache.kv_pages import KVPages
from jaxdeploy.config.quantization import QuantizationConfig
from jaxdeploy.engine.batch import StepLayout
from jaxdeploy.engine.buckets import Bucket, Buckets
from jaxdeploy.engine.step import DENSE_OPTIONS, LEAST_DENSE_ROWS, Program, Scores, model_program
from jaxdeploy.model.decoder import Decoder, random_parameters

INT4 = replace(CONFIG, quantization=QuantizationConfig("awq", group_size=16, zero_point=True))


def program(config, bucket: Bucket, platform: str) -> Program:
    params, pages, scores = jax.eval_shape(
        lambda: (
            random_parameters(config, "bfloat16"),
            KVPages.create(config, 4, page_size=8, dtype="bfloat16"),
            Scores.create(bucket.sampler_rows, config.vocab_size),
        )
    )
    layout = StepLayout(bucket, table_width=4, padding_slot=4)
    last_token = jax.ShapeDtypeStruct((5,), "int32")
    return model_program(Decoder(config, "bfloat16"), layout, params, pages, scores, last_token, platform=platform)


@pytest.mark.parametrize("bucket", [Bucket(4, 4, True, 4), Bucket(16, 4, False, 4)], ids=str)
@pytest.mark.parametrize("config", [CONFIG, INT4], ids=["dense", "int4"])
def test_layers_are_written_out_on_a_gpu_and_in_a_loop_elsewhere(config, bucket):
    def layers_a_turn(platform: str) -> int:
        made = program(config, bucket, platform)
        (turns,) = [e for e in jax.make_jaxpr(made.function)(*made.arguments).eqns if e.primitive.name == "scan"]
        assert turns.params["length"] == config.num_layers
        return turns.params["unroll"]

    assert (layers_a_turn("gpu"), layers_a_turn("cpu")) == (config.num_layers, 1)


def test_dense_weights_are_a_matter_of_cublas():
    bucket = Bucket(4, 4, True, 4)
    dense, int4 = (program(config, bucket, "gpu").compiler_options for config in (CONFIG, INT4))
    assert dense == int4 | DENSE_OPTIONS["gpu"]
    assert program(CONFIG, bucket, "cpu").compiler_options == {}


def test_small_decode_steps_can_be_padded():
    buckets = Buckets.of(batch_size=48, prefill_tokens=128, least_rows=LEAST_DENSE_ROWS)
    assert [bucket.rows for bucket in buckets.decode] == [8, 16, 32, 48]
    assert buckets.fit([1], decode=True).rows == 8
    alone = Buckets.of(batch_size=1, prefill_tokens=16, least_rows=LEAST_DENSE_ROWS)
    assert [(bucket.rows, bucket.sampler_rows) for bucket in alone.decode] == [(8, 8)]
