"""Shared test set-up: shape annotations are checked while tests run, and compiled programs are shared between tests."""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

ARRAY_PACKAGES = ["pallas_kernels", "jaxdeploy.model", "jaxdeploy.sampling", "jaxdeploy.cache.kv_pages"]
install_import_hook(ARRAY_PACKAGES, "beartype.beartype")

from jaxdeploy import runtime

_compile_cache = tempfile.TemporaryDirectory(prefix="jaxdeploy-tests-")
runtime.set_compile_cache(_compile_cache.name)
