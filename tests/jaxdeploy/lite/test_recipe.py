"""Settings that can't work are refused with the option's name."""

import pytest

from jaxdeploy.errors import ConfigError
from jaxdeploy.lite.recipe import Calibration, Recipe


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bits": 8}, "--w-bits 8"),
        ({"group_size": 12}, "--w-group-size 12"),
        ({"group_size": 0}, "--w-group-size 0"),
        ({"scaling": "some"}, "scaling='some' must be one of none, fixed, search"),
        ({"format": "gguf"}, "format='gguf'"),
        ({"act_order": True}, "act_order needs rounding='gptq'"),
        ({"steps": 0}, "steps=0"),
        ({"damping": 0.0}, "damping=0.0"),
    ],
)
def test_recipes(changes: dict, reason: str):
    with pytest.raises(ConfigError, match=reason):
        Recipe(**changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"samples": 0}, "--calib-samples 0"),
        ({"seqlen": 1}, "--calib-seqlen 1"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"eval_samples": -1}, "--eval-samples -1"),
        ({"dataset": "self", "chat": True}, "--calib-chat needs a dataset"),
    ],
)
def test_calibrations(changes: dict, reason: str):
    with pytest.raises(ConfigError, match=reason):
        Calibration(**changes)
