"""Sizes of a prefill call, and whether they fit."""

from dataclasses import dataclass

from pallas_kernels.paged_attention.prefill_convert import RawTiles
from pallas_kernels.paged_attention.prefill_tiles import QUERY_TILE

MAX_SHARED = 220 * 1024
"""Of a block on Hopper, less what Mosaic keeps and what barriers take."""
HEAD_DIMS = (64, 96, 128, 256)
_RAW_RINGS = (64, 3), (64, 2), (32, 3), (32, 2), (16, 3), (16, 2)
"""Tokens and stages of the ring of raw tiles, the best first; with heads of 256 there is little room."""


@dataclass(frozen=True, slots=True)
class PrefillShape:
    """Sizes of a call that are known when it is compiled.

    Attributes:
        key_tile: keys of a step.
        stages: of the ring.
    """

    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    pages: int
    page_size: int
    rows: int
    dtype: str
    bits: int
    scale: float
    soft_cap: float
    key_tile: int = 128
    stages: int = 2

    @property
    def outputs(self) -> int:
        """Accumulators of a warpgroup's output: an instruction's would not leave a thread of four warpgroups a register at 256."""
        return -(-self.head_dim // 128)

    @property
    def registers(self) -> tuple[int, int]:
        """Of a thread that computes and of one that loads or converts, as ptxas spills least (LOG.md); 64k in all."""
        if self.bits == 16:
            return 232, 40
        return {96: (208, 48), 256: (224, 32)}.get(self.head_dim, (216, 40))

    @property
    def raw(self) -> RawTiles:
        """How integer tiles lie in shared memory before they become float16."""
        rings = [RawTiles(self.head_dim, self.bits, *ring) for ring in _RAW_RINGS if ring[0] <= self.key_tile]
        return next((r for r in rings if self.halves_bytes + 8 * r.words <= MAX_SHARED), rings[-1])

    @property
    def halves_bytes(self) -> int:
        """Of queries, keys and values in 16 bits."""
        return 2 * self.head_dim * (QUERY_TILE + 2 * self.stages * self.key_tile)

    @property
    def shared_bytes(self) -> int:
        """All of a block's shared memory but the barriers."""
        return self.halves_bytes + (0 if self.bits == 16 else 8 * self.raw.words)

    @property
    def reason_not(self) -> str | None:
        """Why this kernel can't take such a call; None if it can."""
        if self.head_dim not in HEAD_DIMS:
            return f"head_dim={self.head_dim} must be one of {HEAD_DIMS}"
        if self.page_size not in (16, 32, 64, 128):
            return f"page_size={self.page_size} must be 16, 32, 64 or 128"
        if self.key_tile % 64:
            return f"key_tile={self.key_tile} must be a multiple of 64"
        if self.stages < 2 or self.shared_bytes > MAX_SHARED:
            return f"{self.stages} stages of {self.key_tile} keys don't fit into shared memory"
        return None
