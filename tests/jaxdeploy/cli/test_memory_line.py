"""The start-up line."""

import pytest

from jaxdeploy.cache.sizing import MemoryPlan
from jaxdeploy.cli.memory_line import format_bytes, memory_line


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1024, "1.00 KiB"),
        (int(3.35 * 2**30), "3.35 GiB"),
        (150 * 2**20, "150 MiB"),
        (2**50, "1024 TiB"),
    ],
)
def test_bytes_have_three_digits(count, text):
    assert format_bytes(count) == text


def plan(step_bytes):
    return MemoryPlan(
        weight_bytes=3 * 2**30,
        step_bytes=step_bytes,
        state_bytes=0,
        page_bytes=2**20,
        num_pages=1024,
        page_size=64,
        device_bytes=80 * 2**30,
    )


def test_line_names_weights_pages_tokens_and_memory():
    assert memory_line(plan(step_bytes=2**29)) == (
        "weights 3.00 GiB, KV cache 1.00 GiB (1,024 pages x 64 tokens = 65,536 tokens), "
        "step buffers 512 MiB, device 80.0 GiB"
    )


def test_what_was_not_computed_is_left_out():
    assert "step buffers" not in memory_line(plan(step_bytes=0))
