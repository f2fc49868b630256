"""How XLA compiles for these tests."""

import os
from collections.abc import Iterator

import jax
import pytest

SWITCH = "jax_disable_most_optimizations"


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly(request: pytest.FixtureRequest) -> Iterator[None]:
    """Programs of models with a few thousand weights take longer to optimize than to run. The demo model runs as users run it."""
    before = jax.config.read(SWITCH)
    jax.config.update(SWITCH, os.environ["JAX_PLATFORMS"] == "cpu" and request.node.get_closest_marker("demo") is None)
    yield
    jax.config.update(SWITCH, before)
