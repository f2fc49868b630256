"""Decode attention on Hopper: the time is the time to read the cache.

The grid is one block for each multiprocessor. A block holds ``groups`` pipelines that know nothing of each other; each walks over
units of work (sequence, chunk of its context, KV head) with a stride:

    a warp of the last    for each unit, tile by tile: page numbers from the block table, then bulk copies of K, V and their pairs
    warpgroup             into the next free stage of a ring. It runs ahead over the borders of units.
    a warpgroup           takes the tiles. A warp owns 16 tokens of each 64:
                          S = K Q^T, softmax in registers with a maximum of the warp's own, O += V^T P, all by ``mma``
    at a unit's end       its warps' maxima, sums and outputs are joined through shared memory and written as float32 partials

``merge`` then joins the chunks of each sequence. Integers enter the products as they are stored; scales and offsets are applied
to scores and weights: ``s = scale_t (q . k_t) + min_t sum(q)`` and ``o = sum_t (p_t scale_t) v_t + sum_t p_t min_t``.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int32, Num

from pallas_kernels import ptx, ptx_sync
from pallas_kernels.paged_attention.decode_warp import DecodeWarp
from pallas_kernels.paged_attention.fragments import Stored
from pallas_kernels.paged_attention.page_copies import PageCopies
from pallas_kernels.paged_attention.split import Split
from pallas_kernels.ptx import Int, constant
from pallas_kernels.ptx_float import scan_warp

MAX_SHARED = 224 * 1024
"""Of a block on Hopper, less what Mosaic keeps for itself."""
_SLOTS = 2
"""Units whose queries are in shared memory at a time."""
_HEADER_BYTES = 32
"""What the copying warp tells the computing ones of a unit: row of the output, first token, tiles, length, first token seen."""


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """How the work is cut.

    Attributes:
        tile: tokens of a stage of the ring, a multiple of 64.
        chunk: tokens that a pipeline takes of one sequence at a time, at least.
        groups: pipelines of a block.
        stages: of a ring; None for as many as fit.
        blocks: of the grid.
    """

    tile: int = 64
    chunk: int = 512
    groups: int = 2
    stages: int | None = None
    blocks: int = 132


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a call that are known when it is compiled."""

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

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.heads // self.kv_heads

    @property
    def query_bytes(self) -> int:
        """Of the queries that share a KV head."""
        return self.group * self.stored.head_dim * 2

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
        self.slot_bytes = _HEADER_BYTES + shape.query_bytes
        head_floats = DecodeWarp.head_floats(shape.stored.head_dim)
        sizes = {
            "slots": _SLOTS * self.slot_bytes,
            "stats": 4 * 8 * -(-shape.group // 8) * 16,
            "outputs": 4 * shape.group * head_floats * 4,
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
        offset += _aligned((2 * self.stages + 2 * _SLOTS) * ptx_sync.BARRIER_BYTES)
        self.offsets["ring"] = offset
        self.pipeline = offset + self.stages * self.stage_bytes
        self.total = self.common + config.groups * self.pipeline

    def reason_not(self) -> str | None:
        """Why this doesn't fit; None if it does."""
        if self.stages < 2 or self.total > MAX_SHARED:
            return f"{self.stages} stages of {self.stage_bytes} bytes don't fit into shared memory"
        return None


def _aligned(size: int) -> int:
    return -(-size // 128) * 128


def default_config(shape: Shape) -> DecodeConfig:
    """Two pipelines where each has three stages, else one: differences seen on an H100 are small (LOG.md)."""
    blocks = multiprocessors()
    config = DecodeConfig(groups=2, blocks=blocks)
    return config if Layout(shape, config).stages >= 3 else DecodeConfig(groups=1, blocks=blocks)


@functools.cache
def multiprocessors() -> int:
    """Of the default device if that is a GPU, else those of an H100."""
    device = jax.devices()[0]
    return device.core_count if device.platform == "gpu" else 132


def reason_not(shape: Shape, config: DecodeConfig) -> str | None:
    """Why this kernel can't take a call; None if it can."""
    if shape.group > 16:
        return f"{shape.group} query heads of a KV head are more than 16"
    if shape.page_size % 16 or (shape.page_size % config.tile and config.tile % shape.page_size):
        return f"page_size={shape.page_size} must be 16, 32 or a multiple of 64"
    return shape.stored.reason_not or Layout(shape, config).reason_not()


def decode_partials(
    q: Float[Array, "B N H"],
    pools: tuple[Num[Array, "L P K page _"], ...],
    layer: Int32[Array, " 1"],
    block_table: Int32[Array, "B W"],
    context_lens: Int32[Array, " B"],
    window: Int32[Array, " 1"],
    shape: Shape,
    config: DecodeConfig,
) -> tuple[Float[Array, "B C N H"], Float[Array, "B C N 2"], Split]:
    """The chunks' outputs (times their sums), their (maximum, sum), and how contexts were cut.

    ``pools`` are K, V and, for integers, K's and V's pairs. What lies past the number of chunks of a sequence is not written.
    """
    split = Split.of(tile=config.tile, chunk=config.chunk, table_tokens=shape.table_width * shape.page_size)
    partials, stats = _call(shape, config, split)(q, layer, block_table, context_lens, window, *pools)
    return partials, stats, split


@functools.lru_cache(maxsize=512)
def _call(shape: Shape, config: DecodeConfig, split: Split):
    layout = Layout(shape, config)
    lead = (shape.batch, split.max_chunks, shape.heads)

    def paged_decode(*refs):
        types = [plgpu.RefType() for _ in refs]
        ptx_sync.run_inline(lambda *buffers: _Block(shape, config, split, layout, buffers).run(), types, *refs)

    return jax.jit(
        plgpu.kernel(
            paged_decode,
            out_type=(
                jax.ShapeDtypeStruct((*lead, shape.stored.head_dim), jnp.float32),
                jax.ShapeDtypeStruct((*lead, 2), jnp.float32),
            ),
            scratch_types=[plgpu.SMEM((layout.total // 4,), jnp.int32)],
            grid=(config.blocks,),
            grid_names=("block",),
            num_threads=config.groups + 1,
            thread_name="warpgroup",
            compiler_params=ptx.compiler_params(),
        )
    )


class _Block:
    """The code of a block, emitted once for all its threads."""

    def __init__(self, shape: Shape, config: DecodeConfig, split: Split, layout: Layout, buffers):
        self.shape, self.config, self.split, self.layout = shape, config, split, layout
        *inputs, partials, stats, shared = buffers
        queries, layer, table, lens, window, *pools = (ptx.global_address(x) for x in inputs)
        self.queries, self.table, self.lens, self.pools = queries, table, lens, pools
        self.partials, self.stats = ptx.global_address(partials), ptx.global_address(stats)
        self.starts = ptx.shared_address(shared)
        self.layer, self.window = ptx.load_global(layer), ptx.load_global(window)
        # Read from one lane, so that the compiler knows it to be the same in all of them.
        self.lane, self.warp = ptx.thread_index() % 32, Int(utils.warp_idx())
        copies = 4 * config.groups
        self.copying = ptx_sync.both(constant(copies - 1) < self.warp, self.warp < copies + config.groups)
        self.group = (self.warp - copies).select(self.copying, self.warp // 4)
        part = self.starts + layout.common + self.group * layout.pipeline
        self.ring, self.slots, self.shared_stats, self.shared_outputs = (
            part + layout.offsets[name] for name in ("ring", "slots", "stats", "outputs")
        )
        self.full = part + layout.offsets["barriers"]
        self.empty = self.full + 8 * layout.stages
        self.slot_full = self.full + 16 * layout.stages
        self.slot_empty = self.slot_full + 8 * _SLOTS

    def run(self) -> None:
        """All of it."""
        groups = self.config.groups
        with ptx_sync.when(ptx_sync.both(self.copying, ptx_sync.equal(self.lane, 0))):
            for i in range(self.layout.stages):
                ptx_sync.init_barrier(self.full + 8 * i, 1)
                ptx_sync.init_barrier(self.empty + 8 * i, 4)
            for i in range(_SLOTS):
                ptx_sync.init_barrier(self.slot_full + 8 * i, 1)
                ptx_sync.init_barrier(self.slot_empty + 8 * i, 4)
            ptx_sync.publish_barriers()
        with ptx_sync.when(ptx_sync.equal(self.warp, 4 * groups)):
            self._count_chunks()
        ptx.sync_block()
        total = ptx.load_shared(self.starts + 4 * self.shape.batch)[0] * self.shape.kv_heads
        # Consecutive units go to different multiprocessors.
        pipelines = self.config.blocks * groups
        first = ptx.block_index() + self.group * self.config.blocks
        units = (total + (pipelines - 1) - first) // pipelines
        with ptx_sync.when(self.copying):
            self._load_units(units, first, pipelines)
        with ptx_sync.when(self.warp < 4 * groups):
            self._compute_units(units)

    def _count_chunks(self) -> None:
        """Number of chunks before each sequence, for all sequences, by one warp."""
        each = -(-self.shape.batch // 32)
        counts, total = [], constant(0)
        for i in range(each):
            row = self.lane * each + i
            length = ptx.load_global(self._at(self.lens, ptx_sync.minimum(row, self.shape.batch - 1)))
            counts.append(self.split.cut(length, self.window).chunks.select(row < self.shape.batch, 0))
            total = total + counts[-1]
        before = scan_warp(total, self.lane) - total
        for i, count in enumerate(counts):
            row = self.lane * each + i
            before = before + count
            with ptx_sync.when(row < self.shape.batch):
                ptx.store_shared(self.starts + (row + 1) * 4, before)
        with ptx_sync.when(ptx_sync.equal(self.lane, 0)):
            ptx.store_shared(self.starts, constant(0))

    @staticmethod
    def _at(base: Int, index: Int) -> Int:
        """Address of a 32-bit element."""
        return base + index.wide() * 4

    def _row_of(self, place: Int) -> Int:
        """Row of the batch that the chunk of this number belongs to: the last one that starts at or before it."""
        last = self.shape.batch - 1
        row = constant(0)
        for step in (1 << i for i in reversed(range(last.bit_length()))):
            candidate = ptx_sync.minimum(row + step, last)
            row = row.select(place < ptx.load_shared(self.starts + candidate * 4)[0], candidate)
        return row

    def _load_units(self, units: Int, first: Int, pipelines: int) -> None:
        """The warp that copies."""
        shape, split, stages = self.shape, self.split, self.layout.stages
        copies = PageCopies(
            self.pools, shape.kinds, self.layout.kind_offsets, self.table, shape.table_width, self.layer, shape.pages,
            shape.kv_heads, shape.page_size, split.tile,
        )  # fmt: skip

        def load_unit(i: Int, carry):
            unit = first + i * pipelines
            head, place = unit % shape.kv_heads, unit // shape.kv_heads
            row = self._row_of(place)
            chunk = place - ptx.load_shared(self.starts + row * 4)[0]
            context = split.cut(ptx.load_global(self._at(self.lens, row)), self.window)
            begin = context.begin + chunk * context.per_chunk
            count = ptx_sync.minimum(context.per_chunk, context.end - begin)
            slot, barrier = self._slot(i)
            ptx_sync.wait(barrier + 8 * _SLOTS, ((i // _SLOTS) & 1) ^ 1)
            with ptx_sync.when(ptx_sync.equal(self.lane, 0)):
                out = (row * split.max_chunks + chunk) * shape.heads + head * shape.group
                ptx.store_shared(slot, out, begin * split.tile, count, context.length)
                ptx.store_shared(slot + 16, context.first)
                ptx_sync.arrive_expecting(barrier, shape.query_bytes)
                source = (row * shape.heads + head * shape.group).wide() * (2 * shape.stored.head_dim)
                ptx_sync.copy_bulk(slot + _HEADER_BYTES, self.queries + source, shape.query_bytes, barrier)

            def load_tile(j: Int, carry):
                (number,) = carry
                stage = number % stages
                ptx_sync.wait(self.empty + stage * 8, ((number // stages) & 1) ^ 1)
                target, token = self.ring + stage * self.layout.stage_bytes, (begin + j) * split.tile
                copies.start(target, self.full + stage * 8, self.lane, row, head, token, context.length)
                return [number + 1]

            return ptx.repeat(count, carry, load_tile)

        ptx.repeat(units, [constant(0)], load_unit)

    def _slot(self, i: Int) -> tuple[Int, Int]:
        """Where the queries of the i-th unit are, and the barrier that reports them."""
        number = i % _SLOTS
        return self.slots + number * self.layout.slot_bytes, self.slot_full + number * 8

    def _compute_units(self, units: Int) -> None:
        """The warps that compute."""
        stages, tile = self.layout.stages, self.config.tile
        warp = DecodeWarp(self.shape, self.lane)
        in_group = self.warp % 4

        def compute_unit(i: Int, carry):
            (number,) = carry
            slot, barrier = self._slot(i)
            ptx_sync.wait(barrier, (i // _SLOTS) & 1)
            out, begin, count, length = ptx.load_shared(slot, 4)
            (first,) = ptx.load_shared(slot + 16)
            warp.load_queries(slot + _HEADER_BYTES)
            self._release(barrier + 8 * _SLOTS)

            def compute_tile(j: Int, state):
                stage = (number + j) % stages
                ptx_sync.wait(self.full + stage * 8, ((number + j) // stages) & 1)
                base = self.ring + stage * self.layout.stage_bytes
                tokens = [in_group * 16 + part for part in range(0, tile, 64)]
                pools = [base + offset for offset in self.layout.kind_offsets]
                state = warp.add(state, pools, tokens, begin + j * tile - first, length - first)
                self._release(self.empty + stage * 8)
                return state

            state = ptx.repeat(count, warp.start(), compute_tile)
            shared = (self.shared_stats, self.shared_outputs)
            warp.join(state, *shared, in_group, self.group + 1, self.partials, self.stats, out)
            return [number + count]

        ptx.repeat(units, [constant(0)], compute_unit)

    def _release(self, barrier: Int) -> None:
        ptx.sync_warp()
        with ptx_sync.when(ptx_sync.equal(self.lane, 0)):
            ptx_sync.arrive(barrier)
