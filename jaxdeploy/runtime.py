"""JAX as jaxdeploy wants it. Import this before jax does anything: the only module that touches XLA's environment."""

import os
from pathlib import Path

# The engine allocates weights and pages itself, once, from a computed plan: no pool is grabbed in advance, and the limit that
# the plan works with is the card's memory but for what the driver needs.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.97")
# Loading a cached CPU program logs a page of machine features at error level; real errors raise.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax

COMPILED_EVENT = "/jax/core/compile/backend_compile_duration"
_compilations = 0


def _count(event: str, duration_secs: float, **kwargs: str | int) -> None:
    global _compilations
    _compilations += event == COMPILED_EVENT


jax.monitoring.register_event_duration_secs_listener(_count)


def compilations() -> int:
    """Programs that XLA has compiled (or loaded from the compilation cache) in this process."""
    return _compilations


def default_compile_cache() -> Path:
    """Where compiled programs are kept between runs unless told otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "jaxdeploy" / "xla"


def set_compile_cache(folder: str | None) -> None:
    """Point JAX's persistent compilation cache at ``folder``; None leaves it as it is, "" turns it off.

    Every program is kept, however quickly it compiled: a start needs all of them.
    """
    if folder is None:
        return
    jax.config.update("jax_compilation_cache_dir", folder or None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
