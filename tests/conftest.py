"""Shared test set-up: shape annotations are checked while tests run."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

ARRAY_PACKAGES = ["pallas_kernels", "jaxdeploy.model", "jaxdeploy.sampling", "jaxdeploy.cache.kv_pages"]
install_import_hook(ARRAY_PACKAGES, "beartype.beartype")
