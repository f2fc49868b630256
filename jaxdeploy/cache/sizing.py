"""How many pages fit: computed from what is known, never probed by running out."""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxdeploy.errors import MemoryBudgetError

MARGIN_BYTES = 512 * 2**20
"""Left alone on a GPU: CUDA context of the process, library workspaces, fragmentation."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What an engine holds, in bytes.

    Attributes:
        weight_bytes: parameters.
        step_bytes: most that a compiled step needs besides weights, pages and sampler state; 0 where it was not computed (CPU).
        state_bytes: sampler state.
        page_bytes: one page over all layers, K and V.
        num_pages: pages in the pool. page_size: tokens of a page.
        device_bytes: what the device offers in all; on a CPU the memory that was available.
    """

    weight_bytes: int
    step_bytes: int
    state_bytes: int
    page_bytes: int
    num_pages: int
    page_size: int
    device_bytes: int

    @property
    def pool_bytes(self) -> int:
        """The KV cache."""
        return self.page_bytes * self.num_pages

    @property
    def tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self.page_size * self.num_pages


def device_bytes(device: Any) -> int:
    """Bytes that the device lets this process have; on a CPU the memory that is available now."""
    if device.platform == "cpu":
        return host_bytes()
    stats = device.memory_stats()
    return stats["bytes_limit"] if stats else _card_bytes()


def _card_bytes() -> int:
    """Memory of the current CUDA device as its driver tells it; for XLA's allocators that keep no statistics."""
    total = ctypes.c_size_t()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuMemGetInfo_v2(ctypes.byref(ctypes.c_size_t()), ctypes.byref(total))
    except OSError as error:
        raise MemoryBudgetError(
            f"neither XLA's allocator nor the driver tells how much memory there is: {error}"
        ) from error
    if failed:
        raise MemoryBudgetError(f"XLA's allocator keeps no statistics and cuMemGetInfo failed with CUDA error {failed}")
    return total.value


def host_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that a new allocation could get without swapping; where the system doesn't tell (not Linux), all there are.

    Linux's "available" counts the page cache, which it gives back on demand: a checkpoint just read fills it, so that
    "free" memory would be close to nothing.
    """
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        if "MemAvailable" in fields:
            return int(fields["MemAvailable"].split()[0]) * 2**10
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def tree_bytes(tree: object) -> int:
    """Bytes of all arrays of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def count_pages(
    entry_count: float, *, free_bytes: int, page_bytes: int, least: int, most: int | None, what: str
) -> int:
    """Pages of the pool.

    Args:
        entry_count: ``cache_max_entry_count``: a share of ``free_bytes`` in (0, 1), or a number of pages.
        free_bytes: left by weights, state, step buffers and margin.
        page_bytes: of one page.
        least: pages that the shortest useful cache needs.
        most: pages that could ever be in use; None for no bound.
        what: says in the error what took the memory.

    Raises:
        MemoryBudgetError: fewer than ``least`` pages.
    """
    if entry_count >= 1:
        pages, rule = int(entry_count), f"cache_max_entry_count={int(entry_count)} pages"
    else:
        pages, rule = (
            max(0, int(free_bytes * entry_count)) // page_bytes,
            f"{entry_count:.0%} of {free_bytes / 2**30:.2f} GiB free",
        )
        if most is not None:
            pages = min(pages, most)
    if pages < least:
        raise MemoryBudgetError(
            f"the KV cache gets {pages} pages ({rule}; {what}), fewer than the {least} that one sequence needs: "
            "raise cache_max_entry_count, lower session_len or max_batch_size, or quantize the cache or the weights"
        )
    return pages
