import jax
import jax.numpy as jnp
import pytest

from jaxdeploy.cache import sizing
from jaxdeploy.cache.sizing import MemoryPlan, count_pages, device_bytes, host_bytes, tree_bytes
from jaxdeploy.errors import MemoryBudgetError, UserError

PAGE_BYTES = 1000


def pages(entry_count: float, *, free: int = 100 * PAGE_BYTES, least: int = 1, most: int | None = None) -> int:
    return count_pages(
        entry_count, free_bytes=free, page_bytes=PAGE_BYTES, least=least, most=most, what="weights 3.35 GiB"
    )


@pytest.mark.parametrize(("share", "count"), [(0.5, 50), (0.8, 80), (0.999, 99), (0.019, 1)])
def test_a_share_is_of_the_free_memory_rounded_down(share, count):
    assert pages(share) == count


def test_a_share_stops_at_what_could_ever_be_used():
    assert pages(0.5, most=20) == 20
    assert pages(0.5, most=51) == 50


@pytest.mark.parametrize("count", [1, 7, 7.0, 100000])
def test_a_whole_number_counts_pages_whatever_is_free(count):
    found = pages(count, free=0, most=5)
    assert found == count
    assert isinstance(found, int)


@pytest.mark.parametrize(
    ("entry_count", "free", "message"),
    [
        (3, 100, "gets 3 pages \\(cache_max_entry_count=3 pages; weights 3.35 GiB\\), fewer than the 4"),
        (0.5, 7 * PAGE_BYTES, "gets 3 pages \\(50% of 0.00 GiB free; .*fewer than the 4 .*raise cache_max_entry_count"),
        (0.8, -(2**30), "gets 0 pages \\(80% of -1.00 GiB free"),
    ],
)
def test_too_few_pages_says_what_took_the_memory(entry_count, free, message):
    with pytest.raises(MemoryBudgetError, match=message) as error:
        pages(entry_count, free=free, least=4)
    assert isinstance(error.value, UserError)


def test_least_and_most_may_be_all_there_is():
    assert pages(0.5, free=8 * PAGE_BYTES, least=4, most=4) == 4


def test_plan_sums():
    plan = MemoryPlan(1, 2, 3, page_bytes=PAGE_BYTES, num_pages=12, page_size=64, device_bytes=10**6)
    assert plan.pool_bytes == 12 * PAGE_BYTES
    assert plan.tokens == 768


def test_tree_bytes_counts_arrays_and_structs():
    tree = {"a": jnp.zeros((2, 3), jnp.bfloat16), "b": [jax.ShapeDtypeStruct((5,), jnp.uint8), None]}
    assert tree_bytes(tree) == 12 + 5


def test_available_memory_counts_the_page_cache(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  1000 kB\nMemFree:  1 kB\nMemAvailable:     900 kB\nHugePages_Total:  0\n")
    assert host_bytes(meminfo) == 900 * 1024


@pytest.mark.parametrize("text", [None, "MemTotal: 1000 kB\nMemFree: 1 kB\n"])
def test_total_memory_where_the_system_does_not_say(tmp_path, monkeypatch, text):
    meminfo = tmp_path / "meminfo"
    if text is not None:
        meminfo.write_text(text)
    monkeypatch.setattr(sizing.os, "sysconf", {"SC_PHYS_PAGES": 10, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert host_bytes(meminfo) == 40960


class FakeDevice:
    def __init__(self, platform: str):
        self.platform = platform

    def memory_stats(self):
        return {"bytes_limit": 77, "bytes_in_use": 5}


def test_device_bytes_is_the_limit_of_a_gpu_and_the_host_memory_of_a_cpu(monkeypatch):
    monkeypatch.setattr(sizing, "host_bytes", lambda: 123)
    assert device_bytes(FakeDevice("gpu")) == 77
    assert device_bytes(FakeDevice("cpu")) == 123


def test_an_allocator_without_statistics_and_no_driver_is_an_error_that_says_so():
    class Silent:
        platform = "gpu"

        def memory_stats(self):
            return None

    with pytest.raises(MemoryBudgetError, match="neither XLA's allocator nor the driver"):
        device_bytes(Silent())
