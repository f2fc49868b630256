"""Integer pages on their way into tiles that the tensor cores read: bulk copies into a ring of raw tiles, then float16.

``q * scale + offset`` is computed in float16 with one rounding, eight times finer than bfloat16's.
"""

from dataclasses import dataclass

from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import ptx, ptx_sync
from pallas_kernels.paged_attention.fragments import float16_bytes, float16_nibbles
from pallas_kernels.paged_attention.page_copies import PageCopies
from pallas_kernels.paged_attention.swizzled import address_of, transforms
from pallas_kernels.ptx import Int, scalar
from pallas_kernels.ptx_float import halves_fma_words, permute

_SPLAT = plgpu.Layout.WG_SPLAT(())
_FIRST_BARRIER = 8
"""Hardware barriers of the converting warpgroups; Mosaic takes 1 to 4 for its own."""
_REF = plgpu.RefType()
_LOADS_AHEAD = 2
"""Pieces of 16 bytes that a thread loads before it converts them: what 40 registers hold."""


@dataclass(frozen=True, slots=True)
class RawTiles:
    """The ring of raw tiles of one of K and V, each with its pairs, and after it the barriers that report them.

    Attributes:
        tile: tokens of a raw tile, a part of a step.
        stages: of the ring.
    """

    head_dim: int
    bits: int
    tile: int
    stages: int

    @property
    def row_bytes(self) -> int:
        """Of a token and head."""
        return self.head_dim * self.bits // 8

    @property
    def sizes(self) -> list[int]:
        """Bytes of a token and head in the pool and in that of its pairs."""
        return [self.row_bytes, 4]

    @property
    def stage_bytes(self) -> int:
        """Of a tile."""
        return self.tile * sum(self.sizes)

    @property
    def words(self) -> int:
        """32-bit words of the ring and its barriers."""
        return self.stages * (self.stage_bytes + ptx_sync.BARRIER_BYTES) // 4


def init_raw(raw, tiles: RawTiles) -> None:
    """Set up the barriers; by the warpgroup that copies and converts."""

    def emit(raw):
        with ptx_sync.when(ptx_sync.equal(ptx.thread_index() % 128, 0)):
            for i in range(tiles.stages):
                ptx_sync.init_barrier(_barrier(ptx.shared_address(raw), tiles, i), 1)
            ptx_sync.publish_barriers()
        ptx_sync.sync_warpgroup(_own_barrier())

    ptx_sync.run_inline(emit, (_REF,), raw)


def copy_raw(raw, tiles: RawTiles, pools, table, *, pages: int, kv_heads: int, page_size: int, scalars) -> None:
    """Start the copies of a tile; scalars are stage, layer, row of the table, KV head, first token and context length."""
    width = table.shape[1]

    def emit(raw, pools, table, scalars):
        stage, layer, row, head, token, length = (scalar(s) for s in scalars)
        base, thread = ptx.shared_address(raw), ptx.thread_index() % 128
        # All threads are done with what the stage held.
        ptx_sync.sync_warpgroup(_own_barrier())
        with ptx_sync.when(thread < 32):
            copies = PageCopies(
                [ptx.global_address(p) for p in pools], tiles.sizes, [0, tiles.tile * tiles.row_bytes],
                ptx.global_address(table), width, layer, pages, kv_heads, page_size, tiles.tile,
            )  # fmt: skip
            copies.start(
                base + stage * tiles.stage_bytes, _barrier(base, tiles, stage), thread, row, head, token, length
            )

    ptx_sync.run_inline(emit, (_REF, [_REF] * 2, _REF, [_SPLAT] * 6), raw, list(pools), table, list(scalars))


def wait_raw(raw, tiles: RawTiles, stage, parity) -> None:
    """Until a tile's copies have arrived."""

    def emit(raw, stage, parity):
        ptx_sync.wait(_barrier(ptx.shared_address(raw), tiles, scalar(stage)), scalar(parity))

    ptx_sync.run_inline(emit, (_REF, _SPLAT, _SPLAT), raw, stage, parity)


def convert_raw(raw, smem, tiles: RawTiles, stage, slot, first) -> None:
    """A raw tile as float16 into rows ``first`` on of ``smem[slot]``. ``commit_smem`` must follow."""
    slot_bytes = smem.shape[1] * smem.shape[2] * 2

    def emit(raw, smem, stage, slot, first):
        values = ptx.shared_address(raw) + scalar(stage) * tiles.stage_bytes
        target = ptx.shared_address(smem) + scalar(slot) * slot_bytes
        pieces = _pieces(tiles, values, target, scalar(first), ptx.thread_index() % 128)
        for i in range(0, len(pieces), _LOADS_AHEAD):
            some = pieces[i : i + _LOADS_AHEAD]
            # Loads and stores stay in order: a load behind a store would wait for all that the store waits for.
            loaded = [(ptx.load_shared(pair)[0], ptx.load_shared(piece, 4)) for pair, piece, _ in some]
            for (pair, words), (*_, targets) in zip(loaded, some, strict=True):
                scale, offset = permute(pair, pair, 0x1010), permute(pair, pair, 0x3232)
                step = 4 // len(targets)  # words of 8 values
                for j, address in enumerate(targets):
                    halves = _in_order(words[j * step : (j + 1) * step], tiles.bits)
                    ptx.store_shared(address, *[halves_fma_words(h, scale, offset) for h in halves])

    types = _REF, plgpu.RefType(transforms(tiles.head_dim)), _SPLAT, _SPLAT, _SPLAT
    ptx_sync.run_inline(emit, types, raw, smem, stage, slot, first)


def _pieces(tiles: RawTiles, values: Int, target: Int, first: Int, thread: Int) -> list[tuple[Int, Int, list[Int]]]:
    """What a thread converts: for each 16 bytes the addresses of their pair, of them, and of each 8 values as float16."""
    chunks, per_load, loads = tiles.head_dim // 8, 16 // tiles.bits, tiles.row_bytes // 16
    pairs, total = values + tiles.tile * tiles.row_bytes, tiles.tile * loads
    across = 8  # chunks of 128 bytes of a row
    rows = 128 // loads  # that 128 threads take at a time
    if chunks % across or 128 % loads or rows % 8 or total % 128:
        pieces = []
        for start in range(0, total, 128):
            # Where the last round has too little work, threads do the last piece again: the same bytes to the same place.
            index = ptx_sync.minimum(thread + start, total - 1)
            row, part = index // loads, index % loads
            targets = [address_of(target, first + row, part * per_load + j, chunks) for j in range(per_load)]
            pieces.append((pairs + row * 4, values + row * tiles.row_bytes + part * 16, targets))
        return pieces
    row, part = thread // loads, thread % loads
    # Eight threads store at a time. Pieces of one row that lie 128 bytes apart come to the same banks: they take other rows.
    row = row ^ (part * per_load // across * max(1, 8 // loads))
    begin = address_of(target, first + row, part * per_load, chunks)
    pair, piece = pairs + row * 4, values + row * tiles.row_bytes + part * 16
    # From round to round a thread's row moves on by whole tiles of 8, which moves every address by as much.
    return [
        (
            pair + i * (4 * rows),
            piece + i * (rows * tiles.row_bytes),
            [(begin + i * (rows * 2 * tiles.head_dim)) ^ (16 * j) for j in range(per_load)],
        )
        for i in range(total // 128)
    ]


def _own_barrier() -> Int:
    return ptx.thread_index() // 128 + _FIRST_BARRIER


def _barrier(base: Int, tiles: RawTiles, stage: Int | int) -> Int:
    place = base + tiles.stages * tiles.stage_bytes
    return place + stage * ptx_sync.BARRIER_BYTES if isinstance(stage, Int) else place + 8 * stage


def _in_order(words: list[Int], bits: int) -> list[Int]:
    """Eight values as float16, two to a word."""
    if bits == 8:
        return [h for word in words for h in float16_bytes(word)]
    a, b, c, d = float16_nibbles(words[0])  # (0, 4), (1, 5), (2, 6), (3, 7)
    return [permute(*p, selector) for selector in (0x5410, 0x7632) for p in ((a, b), (c, d))]
