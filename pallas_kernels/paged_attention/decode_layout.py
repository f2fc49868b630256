"""Sizes of a decode call: how its work is cut, and what lies where in shared memory."""

from dataclasses import dataclass

from pallas_kernels import ptx_sync
from pallas_kernels.device import current_gpu
from pallas_kernels.paged_attention.decode_warp import DecodeWarp
from pallas_kernels.paged_attention.fragments import Stored
from pallas_kernels.paged_attention.split import Split

MAX_SHARED = 224 * 1024
"""Of a block on Hopper, less what Mosaic keeps for itself."""
SLOTS = 2
"""Units whose queries are in shared memory at a time."""
HEADER_BYTES = 32
"""What the copying warp tells the computing ones of a unit: row of the partial results, first token, tiles, length; first token
seen, query tokens (of one each: the context's chunks), first column, row of the output."""
FEW_CHUNKS = 4
"""Of a context, where it is said how many units there may be. Contexts are not known when a kernel is chosen."""
MOST_QUERIES = 16
"""Query tokens of a row. Each needs its own columns of the products: where a unit's are full, the cache is read again."""


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """How the work is cut. ``tile`` and ``chunk`` are part of the result's bits, the others are not.

    Attributes:
        tile: tokens of a stage of the ring, a multiple of 64.
        chunk: tokens that a pipeline takes of one sequence at a time, at least.
        groups: pipelines of a block.
        stages: of a ring; None for as many as fit.
        blocks: of the grid; None for one on each multiprocessor.
    """

    tile: int = 64
    chunk: int = 512
    groups: int = 2
    stages: int | None = None
    blocks: int | None = None

    @property
    def grid(self) -> int:
        """Number of blocks."""
        return self.blocks or current_gpu().multiprocessors


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a call that are known when it is compiled.

    Attributes:
        queries: query tokens that a row has at most. With 1 each row has just that one.
    """

    batch: int
    heads: int
    kv_heads: int
    pages: int
    page_size: int
    table_width: int
    stored: Stored
    query_dtype: str
    scale: float
    soft_cap: float
    queries: int = 1

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.heads // self.kv_heads

    @property
    def width(self) -> int:
        """Columns of a unit's products, one for each query head of each of its query tokens.

        A thread holds H / 4 floats of output and half as many of queries for each 8 of them: more would not stay in registers.
        """
        most = 8 * max(1, min(4, 256 // self.stored.head_dim))
        return min(self.group * self.queries, most)

    @property
    def parts(self) -> int:
        """Units that share a KV head's columns at most, each with all of its tokens."""
        return -(-self.group * self.queries // self.width)

    @property
    def rows(self) -> int:
        """Columns of all KV heads, in the order of partial results: by KV head, query token, query head."""
        return self.heads * self.queries

    @property
    def uniform(self) -> bool:
        """Do all columns see the same tokens, and is every column one? Else each unit says what its columns are."""
        return self.queries == 1 and self.parts == 1

    @property
    def query_bytes(self) -> int:
        """Of the queries of a unit."""
        return self.width * self.stored.head_dim * 2

    @property
    def kinds(self) -> list[int]:
        """Bytes of a token in each of the pools that are read: K, V, and their pairs if there are any."""
        return [self.stored.row_bytes] * 2 + [4] * (0 if self.stored.bits == 16 else 2)


class Layout:
    """Offsets in shared memory, those of a pipeline from its own part, and the number of stages that fit."""

    def __init__(self, shape: Shape, config: DecodeConfig):
        tokens, kinds = config.tile, shape.kinds
        self.stage_bytes = tokens * sum(kinds)
        self.kind_offsets = [tokens * sum(kinds[:i]) for i in range(len(kinds))]
        self.slot_bytes = HEADER_BYTES + shape.query_bytes
        head_floats = DecodeWarp.head_floats(shape.stored.head_dim)
        sizes = {
            "slots": SLOTS * self.slot_bytes,
            "stats": 4 * 8 * -(-shape.width // 8) * 16,
            "outputs": 4 * shape.width * head_floats * 4,
            "arrival": 4,
        }
        offset = 0
        self.offsets: dict[str, int] = {}
        for name, size in sizes.items():
            self.offsets[name] = offset
            offset += _aligned(size)
        self.common = _aligned(4 * (shape.batch + 1))
        free = (MAX_SHARED - self.common) // config.groups - offset - 256
        self.stages = config.stages or free // (self.stage_bytes + 2 * ptx_sync.BARRIER_BYTES)
        self.offsets["barriers"] = offset
        offset += _aligned((2 * self.stages + 2 * SLOTS) * ptx_sync.BARRIER_BYTES)
        self.offsets["ring"] = offset
        self.pipeline = offset + self.stages * self.stage_bytes
        self.total = self.common + config.groups * self.pipeline

    def reason_not(self) -> str | None:
        """Why this doesn't fit; None if it does."""
        if self.stages < 2 or self.total > MAX_SHARED:
            return f"{self.stages} stages of {self.stage_bytes} bytes don't fit into shared memory"
        return None


def merges(shape: Shape, config: DecodeConfig, split: Split) -> bool:
    """Does the decode kernel merge the chunks of contexts itself, so that no second kernel has to?

    A launch less, 1.5 us; but each unit of several chunks waits about a microsecond for its counter, and delays the one after it.
    H200, 64 x 4k: 275 us where two kernels took 254 (bfloat16), 167 and 141 (int8). So only where a pipeline has about one unit.
    """
    units = shape.batch * shape.kv_heads * shape.parts
    return shape.queries == 1 and (split.max_chunks == 1 or units * FEW_CHUNKS <= config.grid * config.groups)


def _aligned(size: int) -> int:
    return -(-size // 128) * 128


def reason_not(shape: Shape, config: DecodeConfig) -> str | None:
    """Why the decode kernel can't take a call; None if it can."""
    if not 1 <= shape.queries <= MOST_QUERIES:
        return f"{shape.queries} query tokens of a row are more than {MOST_QUERIES}"
    if shape.page_size % 16 or (shape.page_size % config.tile and config.tile % shape.page_size):
        return f"page_size={shape.page_size} must be 16, 32 or a multiple of 64"
    return shape.stored.reason_not or Layout(shape, config).reason_not()
