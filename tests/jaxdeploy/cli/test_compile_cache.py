"""Where the commands keep compiled programs."""

import jax
import pytest

from jaxdeploy.cli.compile_cache import compile_cache_folder, with_compile_cache
from jaxdeploy.config.engine import EngineConfig


@pytest.fixture
def jax_folder(monkeypatch):
    """Sets JAX's own folder for a test; no folder to begin with."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield lambda folder: jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_compilation_cache_dir", before)


def test_default_is_in_the_users_cache(jax_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compile_cache_folder() == str(tmp_path / "jaxdeploy" / "xla")


def test_jax_setting_comes_first(jax_folder):
    jax_folder("some/folder")
    assert with_compile_cache(EngineConfig()).compile_cache == "some/folder"


@pytest.mark.parametrize("chosen", ["mine", ""])
def test_a_choice_is_kept(jax_folder, chosen):
    jax_folder("some/folder")
    config = EngineConfig(compile_cache=chosen)
    assert with_compile_cache(config) is config
