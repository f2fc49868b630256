"""Engine options of the command line."""

import pytest

from jaxdeploy.cli.options import engine_config, parse_entry_count
from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.errors import ConfigError


def test_defaults_are_those_of_the_engine():
    assert engine_config() == EngineConfig()


@pytest.mark.parametrize(("text", "value"), [("0.8", 0.8), ("128", 128), ("1", 1), (".5", 0.5)])
def test_entry_count_is_a_share_or_pages(text, value):
    parsed = parse_entry_count(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["", "80%", "-1", "0", "1.5", "nan", "inf"])
def test_a_bad_entry_count_is_named(text):
    with pytest.raises(ConfigError, match=r"cache.max.entry.count"):
        engine_config(cache_max_entry_count=text)
