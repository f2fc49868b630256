"""Shared test set-up: shape annotations are checked while tests run, and compiled programs are shared between tests."""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest
from jaxtyping import install_import_hook

ARRAY_PACKAGES = ["pallas_kernels", "jaxdeploy.model", "jaxdeploy.sampling", "jaxdeploy.cache.kv_pages"]
install_import_hook(ARRAY_PACKAGES, "beartype.beartype")

from support.work_order import LongestFirst, place_in_order

from jaxdeploy import runtime

# pytest-xdist's workers inherit the variable, and so share one folder that the process that made it removes.
CACHE_VARIABLE = "JAXDEPLOY_TEST_COMPILE_CACHE"
if CACHE_VARIABLE not in os.environ:
    _compile_cache = tempfile.TemporaryDirectory(prefix="jaxdeploy-tests-")
    os.environ[CACHE_VARIABLE] = _compile_cache.name
runtime.set_compile_cache(os.environ[CACHE_VARIABLE])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return LongestFirst(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):  # without workers, files come in the order of their names
        items.sort(key=lambda item: place_in_order(item.nodeid))
