"""Compress, deploy and serve large language models on NVIDIA GPUs from JAX.

Names are imported when they are first used, so that ``import jaxdeploy`` costs nothing and jax starts with the right settings.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxdeploy.config.engine import EngineConfig
    from jaxdeploy.config.generation import GenerationConfig
    from jaxdeploy.pipeline import Pipeline, Session, pipeline
    from jaxdeploy.response import Response

__version__ = "0.1.0"
__all__ = ["EngineConfig", "GenerationConfig", "Pipeline", "Response", "Session", "__version__", "pipeline"]

_HOMES = {
    "EngineConfig": "jaxdeploy.config.engine",
    "GenerationConfig": "jaxdeploy.config.generation",
    "Pipeline": "jaxdeploy.pipeline",
    "Session": "jaxdeploy.pipeline",
    "pipeline": "jaxdeploy.pipeline",
    "Response": "jaxdeploy.response",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxdeploy' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # also replaces the submodule of the same name, which importing it has put here
    return value
