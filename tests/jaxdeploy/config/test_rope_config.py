import math

import pytest

from jaxdeploy.config.rope import KINDS, RopeConfig
from jaxdeploy.errors import ConfigError

BASE = {"max_position_embeddings": 1024, "rope_theta": 5e5}
FACTORS = [1.0, 2.0, 3.0, 4.0]


def read(section: dict | None, head_dim: int = 8, **beside) -> RopeConfig:
    return RopeConfig.from_hf({**BASE, "rope_scaling": section, **beside}, head_dim)


def test_absent_null_and_default_are_plain():
    assert read(None) == RopeConfig(theta=5e5)
    assert RopeConfig.from_hf({}, 8) == RopeConfig(theta=10_000.0)
    assert read({"rope_type": "default"}) == read({"type": "default"}) == RopeConfig(theta=5e5)


def test_transformers_5_section_wins():
    cfg = {**BASE, "rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 1e6}}
    assert RopeConfig.from_hf(cfg, 8) == RopeConfig("linear", 1e6, 2.0)
    cfg = {**BASE, "rope_parameters": {"rope_theta": 1e6}, "rope_scaling": {"type": "linear", "factor": 2}}
    assert RopeConfig.from_hf(cfg, 8) == RopeConfig(theta=1e6)
    cfg = {**BASE, "rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}}
    assert RopeConfig.from_hf(cfg, 8) == RopeConfig("linear", 5e5, 2.0)


def test_dynamic_measures_against_max_position_embeddings():
    rope = read({"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 7})
    assert (rope.kind, rope.factor, rope.original_max_position) == ("dynamic", 2.0, 1024)
    assert rope.depends_on_length
    assert not read({"type": "linear", "factor": 2.0}).depends_on_length


def test_llama3():
    section = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
    rope = read({**section, "original_max_position_embeddings": 128})
    assert rope == RopeConfig("llama3", 5e5, 8.0, 128, low_freq_factor=1.0, high_freq_factor=4.0)
    with pytest.raises(ConfigError, match="original_max_position_embeddings is missing"):
        read(section)


def test_yarn_attention_factor():
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    assert read(yarn).attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    assert read({**yarn, "attention_factor": 1.5}).attention_factor == 1.5
    both = read({**yarn, "mscale": 1.5, "mscale_all_dim": 0.5})
    assert both.attention_factor == pytest.approx((0.15 * math.log(4) + 1) / (0.05 * math.log(4) + 1))
    assert read({**yarn, "mscale": 1.5}).attention_factor == read(yarn).attention_factor
    assert read({**yarn, "factor": None}).factor == 4.0  # 1024 / 256
    defaults = read(yarn)
    assert (defaults.beta_fast, defaults.beta_slow, defaults.truncate) == (32.0, 1.0, True)
    assert read({**yarn, "truncate": False}).truncate is False


@pytest.mark.parametrize("name", ["longrope", "su"])
def test_longrope(name):
    section = {"type": name, "short_factor": FACTORS, "long_factor": FACTORS[::-1]}
    rope = read(section, original_max_position_embeddings=256)
    assert (rope.kind, rope.original_max_position, rope.factor) == ("longrope", 256, 4.0)
    assert (rope.short_factor, rope.long_factor) == (tuple(FACTORS), tuple(FACTORS[::-1]))
    assert rope.attention_factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(256)))
    assert read({**section, "attention_factor": 1.1}).attention_factor == 1.1
    assert read(section).attention_factor == 1.0  # original length = maximum: not stretched


def test_factors_are_read_and_hashable():
    rope = read({"rope_type": "factors", "factors": FACTORS})
    assert rope == RopeConfig("factors", 5e5, factors=tuple(FACTORS))
    assert len({rope, read({"rope_type": "factors", "factors": FACTORS})}) == 1


@pytest.mark.parametrize(
    ("section", "parts"),
    [
        ({"type": "ntk-by-parts", "factor": 2.0}, ["rope_scaling.type='ntk-by-parts'", *KINDS]),
        ({"rope_type": ["yarn"]}, ["rope_scaling.rope_type=['yarn']"]),
        ({"factor": 2.0}, ["rope_scaling has a factor but no rope_type", "linear"]),
        ({"type": "linear"}, ["rope_scaling.factor is missing"]),
        ({"type": "dynamic", "factor": 0}, ["rope_scaling.factor=0", "positive"]),
        ({"type": "linear", "factor": "2"}, ["rope_scaling.factor='2'", "positive"]),
        ({"type": "linear", "factor": True}, ["rope_scaling.factor=True"]),
        ({"type": "linear", "factor": float("nan")}, ["rope_scaling.factor=nan"]),
        ({"type": "default", "rope_theta": -1.0}, ["rope_scaling.rope_theta=-1.0"]),
        ({"type": "default", "rope_theta": 1.0}, ["rope_scaling.rope_theta=1.0", "above 1"]),
        ({"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 10.5}, ["10.5", "whole number"]),
        ({"type": "yarn", "factor": 2.0, "beta_fast": 1, "beta_slow": 2}, ["beta_fast=1.0", "beta_slow=2.0"]),
        ({"type": "yarn", "factor": 2.0, "truncate": "no"}, ["truncate='no'"]),
        ({"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}, ["high_freq_factor=4.0"]),
        ({"type": "llama3", "factor": 8, "high_freq_factor": 4}, ["rope_scaling.low_freq_factor is missing"]),
        ({"type": "longrope", "short_factor": FACTORS}, ["long_factor=None", "4 positive numbers"]),
        ({"type": "longrope", "short_factor": FACTORS[:3], "long_factor": FACTORS}, ["3 numbers", "head_dim / 2 = 4"]),
        ({"type": "factors", "factors": [1.0, 0.0, 1.0, 1.0]}, ["factors[1]=0.0"]),
        ({"type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}, ["partial_rotary_factor=0.5"]),
        ({"full_attention": {"rope_type": "default"}}, ["one RoPE per layer type", "full_attention"]),
        ("linear", ["rope_scaling='linear'", "must be an object"]),
    ],
)
def test_errors_name_the_key_the_value_and_the_way_out(section, parts):
    with pytest.raises(ConfigError) as error:
        read(section)
    for part in parts:
        assert part in str(error.value)


def test_missing_length_is_named():
    with pytest.raises(ConfigError, match="max_position_embeddings is missing"):
        RopeConfig.from_hf({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 8)


def test_unknown_kind_cannot_be_built():
    with pytest.raises(ConfigError, match=r"'ntk'.*longrope"):
        RopeConfig("ntk")
