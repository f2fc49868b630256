"""Where the commands keep compiled programs. A library call leaves JAX's setting alone; a command starts faster the next time."""

from dataclasses import replace

import jax

from jaxdeploy import runtime
from jaxdeploy.config.engine import EngineConfig


def compile_cache_folder() -> str:
    """JAX's own setting (``JAX_COMPILATION_CACHE_DIR``) if there is one, else a folder in the user's cache."""
    return jax.config.jax_compilation_cache_dir or str(runtime.default_compile_cache())


def with_compile_cache(config: EngineConfig) -> EngineConfig:
    """``config`` with that folder, unless it names one or turns the cache off."""
    return config if config.compile_cache is not None else replace(config, compile_cache=compile_cache_folder())
