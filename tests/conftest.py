"""Shared test set-up: shape annotations are checked while tests run."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

install_import_hook(["jaxdeploy", "pallas_kernels"], "beartype.beartype")
