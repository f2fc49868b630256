import subprocess
import sys

import pytest

from jaxdeploy.config.quantization import QuantizationConfig
from jaxdeploy.errors import ConfigError

AWQ = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 128, "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128, "dynamic": False}


def compressed(section=None, weights=None, group=None):
    group_0 = {"targets": ["Linear"], "input_activations": None, "weights": WEIGHTS | (weights or {})} | (group or {})
    base = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group_0}}
    return base | (section or {})


def fields(section):
    config = QuantizationConfig.from_hf(section)
    assert config.bits == 4
    assert config.to_hf() == section
    return config.method, config.group_size, config.zero_point, config.desc_act, config.gptq_v2


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (AWQ, ("awq", 128, True, False, False)),
        (AWQ | {"version": "GEMM", "group_size": -1}, ("awq", -1, True, False, False)),
        ({"quant_method": "AWQ", "w_bit": 4, "q_group_size": 64}, ("awq", 64, True, False, False)),
        (GPTQ, ("gptq", 128, False, False, False)),
        (GPTQ | {"sym": False, "desc_act": True, "checkpoint_format": "gptq"}, ("gptq", 128, True, True, False)),
        (GPTQ | {"checkpoint_format": "gptq_v2", "group_size": -1}, ("gptq", -1, False, False, True)),
        (compressed(), ("compressed-tensors", 128, False, False, False)),
        (compressed(weights={"symmetric": False}), ("compressed-tensors", 128, True, False, False)),
        (compressed(weights={"actorder": "weight"}), ("compressed-tensors", 128, False, False, False)),
        (compressed(weights={"actorder": "group"}), ("compressed-tensors", 128, False, True, False)),
        (compressed(weights={"actorder": True}), ("compressed-tensors", 128, False, True, False)),
        (
            compressed(weights={"strategy": "channel", "group_size": None}),
            ("compressed-tensors", -1, False, False, False),
        ),
        (compressed({"sparsity_config": {"format": "dense"}}), ("compressed-tensors", 128, False, False, False)),
        (
            compressed({"format": "mixed-precision"}, group={"format": "pack-quantized"}),
            ("compressed-tensors", 128, False, False, False),
        ),
    ],
)
def test_supported_sections(section, expected):
    assert fields(section) == expected


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "quant_method=None is not supported; supported: 'awq', 'gptq', 'compressed-tensors'"),
        ({"quant_method": "bitsandbytes"}, "quant_method='bitsandbytes' is not supported"),
        (AWQ | {"version": "gemv"}, "version='gemv' is not supported; supported: 'gemm'"),
        (AWQ | {"bits": 8}, "bits=8 is not supported; supported: 4"),
        (AWQ | {"zero_point": False}, "zero_point=False is not supported; supported: True"),
        (AWQ | {"group_size": 0}, "group_size=0 must be a positive even number, or -1"),
        (AWQ | {"group_size": None}, "group_size=None must be"),
        (AWQ | {"modules_to_not_convert": "lm_head"}, "modules_to_not_convert='lm_head' must be a list"),
        (GPTQ | {"bits": 3}, "bits=3 is not supported"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format='marlin' is not supported; supported: 'gptq'"),
        (GPTQ | {"is_marlin_format": True}, "is_marlin_format=True is not supported"),
        (GPTQ | {"lm_head": True}, "lm_head=True is not supported"),
        (GPTQ | {"desc_act": "yes"}, "desc_act='yes' must be true or false"),
        (GPTQ | {"dynamic": {"+:.*down.*": {"bits": 8}}}, r"dynamic\['\+:\.\*down\.\*'\]=.* is not supported"),
        (compressed({"format": "int-quantized"}), "format='int-quantized' is not supported"),
        (compressed({"config_groups": {}}), "config_groups={} must be an object with at least one group"),
        (compressed({"sparsity_config": {"format": "sparse-24-bitmask"}}), "sparsity_config=.* is not supported"),
        (compressed({"transform_config": {"config_groups": {}}}), "transform_config=.* is not supported"),
        (compressed({"kv_cache_scheme": {"num_bits": 8}}), "kv_cache_scheme=.* is not supported"),
        (compressed(weights={"num_bits": 8}), "config_groups.group_0.weights.num_bits=8 is not supported"),
        (compressed(weights={"type": "float"}), "weights.type='float' is not supported"),
        (compressed(weights={"strategy": "block"}), "weights.strategy='block' is not supported"),
        (compressed(weights={"dynamic": True}), "weights.dynamic=True is not supported"),
        (compressed(group={"input_activations": {"num_bits": 8}}), "input_activations=.* is not supported"),
        (compressed(group={"weights": None}), "group_0.weights=None must be an object"),
        (
            compressed(
                {
                    "config_groups": {
                        "a": {"weights": WEIGHTS},
                        "b": {"weights": WEIGHTS | {"group_size": 32}},
                    }
                }
            ),
            "config_groups holds 2 different weight schemes",
        ),
    ],
)
def test_unsupported_sections_name_key_and_value(section, message):
    with pytest.raises(ConfigError, match=message):
        QuantizationConfig.from_hf(section)


def test_modules_that_stay_float():
    config = QuantizationConfig.from_hf(AWQ | {"modules_to_not_convert": ["lm_head", "mlp.gate", "model.layers.0"]})
    floats = ["lm_head", "model.layers.1.mlp.gate", "model.layers.0.self_attn.q_proj"]
    packed = ["model.layers.1.mlp.gate_proj", "model.layers.10.self_attn.q_proj", "lm_head_2"]
    assert all(config.stays_float(name) for name in floats)
    assert not any(config.stays_float(name) for name in packed)


def test_modules_that_stay_float_by_regular_expression():
    ignore = ["lm_head", r"re:.*layers\.[01]\..*down_proj"]
    for section in (compressed({"ignore": ignore}), GPTQ | {"dynamic": {"-:" + ignore[1][3:]: {}}}):
        config = QuantizationConfig.from_hf(section)
        assert config.stays_float("model.layers.1.mlp.down_proj")
        assert not config.stays_float("model.layers.2.mlp.down_proj")
        assert not config.stays_float("model.layers.1.mlp.up_proj")


def test_null_lists_and_missing_ones_are_empty():
    assert QuantizationConfig.from_hf(AWQ | {"modules_to_not_convert": None}).modules_to_not_convert == ()
    assert QuantizationConfig.from_hf(GPTQ).modules_to_not_convert == ()


def test_the_module_imports_no_array_library():
    code = "import sys, jaxdeploy.config.quantization; sys.exit(sum(m in sys.modules for m in ('jax', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
