"""Copies of one tile of tokens from pages to shared memory, by the threads of a warp."""

from dataclasses import dataclass

from pallas_kernels import ptx, ptx_sync
from pallas_kernels.ptx import Int


@dataclass(frozen=True, slots=True)
class PageCopies:
    """Pools, and where a tile of ``tile`` tokens goes.

    Attributes:
        pools: addresses of K, V and their pairs if there are any.
        sizes: bytes of a token and head in each.
        offsets: where each starts in the tile's part of shared memory.
        table: address of the block table.
        layer: which layer's pages.
        pages, kv_heads, page_size: of the pools.
    """

    pools: list[Int]
    sizes: list[int]
    offsets: list[int]
    table: Int
    table_width: int
    layer: Int
    pages: int
    kv_heads: int
    page_size: int
    tile: int

    def start(self, target: Int, barrier: Int, lane: Int, row: Int, head: Int, token: Int, length: Int) -> None:
        """Copy the tile at ``token`` of a sequence (a row of the table) of ``length`` tokens, announced to a barrier.

        Pages past the sequence's last one are left out: all of them, where the tile starts past its end.
        """
        piece = min(self.tile, self.page_size)
        pieces, kinds = self.tile // piece, len(self.sizes)
        left = (length - token).select(token < length, 0)
        valid = ptx_sync.minimum(ptx_sync.ceil_div(left, piece), pieces)
        with ptx_sync.when(ptx_sync.equal(lane, 0)):
            ptx_sync.arrive_expecting(barrier, valid * (piece * sum(self.sizes)))
        ptx.sync_warp()
        for start in range(0, pieces * kinds, 32):
            work = lane + start
            kind, index = work % kinds, work // kinds
            with ptx_sync.when(index < valid):
                place = token + index * piece
                entry = row * self.table_width + place // self.page_size
                page = ptx.load_global(self.table + entry.wide() * 4)
                # Tokens of a pool are more than 32 bits can count.
                page_head = (self.layer.wide() * self.pages + page.wide()) * self.kv_heads + head.wide()
                source = page_head * self.page_size + (place % self.page_size).wide()
                for k, size in enumerate(self.sizes):
                    with ptx_sync.when(ptx_sync.equal(kind, k)):
                        shared = target + self.offsets[k] + index * (piece * size)
                        ptx_sync.copy_bulk(shared, self.pools[k] + source * size, piece * size, barrier)
