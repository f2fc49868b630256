"""Shared test set-up: shape annotations are checked while tests run, and compiled programs are shared between tests."""

import os
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

ARRAY_PACKAGES = ["pallas_kernels", "jaxdeploy.model", "jaxdeploy.sampling", "jaxdeploy.cache.kv_pages"]
install_import_hook(ARRAY_PACKAGES, "beartype.beartype")

from jaxdeploy import runtime

# pytest-xdist's workers inherit the variable, and so share one folder that the process that made it removes.
CACHE_VARIABLE = "JAXDEPLOY_TEST_COMPILE_CACHE"
if CACHE_VARIABLE not in os.environ:
    _compile_cache = tempfile.TemporaryDirectory(prefix="jaxdeploy-tests-")
    os.environ[CACHE_VARIABLE] = _compile_cache.name
runtime.set_compile_cache(os.environ[CACHE_VARIABLE])

LIVE = Path(__file__).parent / "serve" / "live"


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers a file's tests stay together (they share a model), and so do all that share the live server."""
    for item in items:
        group = "live" if item.path.is_relative_to(LIVE) else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
