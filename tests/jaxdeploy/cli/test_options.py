"""Engine options of the command line."""

from dataclasses import fields

import pytest

from jaxdeploy.cli.options import EngineOptions, parse_entry_count
from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.errors import ConfigError


def test_defaults_are_those_of_the_engine():
    assert EngineOptions().config() == EngineConfig()


def test_every_option_of_the_engine_but_its_seed_can_be_typed():
    missing = {field.name for field in fields(EngineConfig)} - {field.name for field in fields(EngineOptions)}
    assert missing == {"seed"}


@pytest.mark.parametrize(("text", "value"), [("0.8", 0.8), ("128", 128), ("1", 1), (".5", 0.5)])
def test_entry_count_is_a_share_or_pages(text, value):
    parsed = parse_entry_count(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("text", ["", "80%", "-1", "0", "1.5", "nan", "inf"])
def test_a_bad_entry_count_is_named(text):
    with pytest.raises(ConfigError, match=r"cache.max.entry.count"):
        EngineOptions(cache_max_entry_count=text).config()
