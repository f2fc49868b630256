"""The code of a block of the decode kernel: who does which unit of work when (``decode_mosaic`` has the whole picture)."""

from jax.experimental.mosaic.gpu import utils

from pallas_kernels import ptx, ptx_sync
from pallas_kernels.paged_attention.decode_layout import HEADER_BYTES, SLOTS, DecodeConfig, Layout, Shape
from pallas_kernels.paged_attention.decode_warp import DecodeWarp
from pallas_kernels.paged_attention.page_copies import PageCopies
from pallas_kernels.paged_attention.split import Split
from pallas_kernels.paged_attention.unit_result import Targets, UnitResult
from pallas_kernels.ptx import Int, constant
from pallas_kernels.ptx_float import scan_warp


class DecodeBlock:
    """The code of a block, emitted once for all its threads."""

    def __init__(self, shape: Shape, config: DecodeConfig, split: Split, layout: Layout, buffers, *, merges: bool):
        self.shape, self.config, self.split, self.layout = shape, config, split, layout
        *arrays, shared = buffers
        queries, layer, table, lens, window, *rest = (ptx.global_address(x) for x in arrays)
        self.queries, self.table, self.lens = queries, table, lens
        self.query_start, *rest = (None, *rest) if shape.queries == 1 else rest
        pools = len(shape.kinds)
        self.pools, self.targets = rest[:pools], Targets.of(split, rest[pools:], merges=merges)
        self.starts = ptx.shared_address(shared)
        self.layer, self.window = ptx.load_global(layer), ptx.load_global(window)
        # Read from one lane, so that the compiler knows it to be the same in all of them.
        self.lane, self.warp = ptx.thread_index() % 32, Int(utils.warp_idx())
        copies = 4 * config.groups
        self.copying = ptx_sync.both(constant(copies - 1) < self.warp, self.warp < copies + config.groups)
        self.group = (self.warp - copies).select(self.copying, self.warp // 4)
        part = self.starts + layout.common + self.group * layout.pipeline
        self.ring, self.slots, self.shared_stats, self.shared_outputs, self.arrival = (
            part + layout.offsets[name] for name in ("ring", "slots", "stats", "outputs", "arrival")
        )
        self.full = part + layout.offsets["barriers"]
        self.empty = self.full + 8 * layout.stages
        self.slot_full = self.full + 16 * layout.stages
        self.slot_empty = self.slot_full + 8 * SLOTS

    def run(self) -> None:
        """All of it."""
        shape, groups = self.shape, self.config.groups
        with ptx_sync.when(ptx_sync.both(self.copying, ptx_sync.equal(self.lane, 0))):
            for i in range(self.layout.stages):
                ptx_sync.init_barrier(self.full + 8 * i, 1)
                ptx_sync.init_barrier(self.empty + 8 * i, 4)
            for i in range(SLOTS):
                ptx_sync.init_barrier(self.slot_full + 8 * i, 1)
                ptx_sync.init_barrier(self.slot_empty + 8 * i, 4)
            ptx_sync.publish_barriers()
        with ptx_sync.when(ptx_sync.equal(self.warp, 4 * groups)):
            self._count_units()
        ptx.sync_block()
        total = ptx.load_shared(self.starts + 4 * shape.batch)[0] * shape.kv_heads
        # Consecutive units go to different multiprocessors.
        pipelines = self.config.grid * groups
        first = ptx.block_index() + self.group * self.config.grid
        units = (total + (pipelines - 1) - first) // pipelines
        with ptx_sync.when(self.copying):
            self._load_units(units, first, pipelines)
            if self.targets.output is not None:
                with ptx_sync.when(ptx_sync.equal(self.group, 0)):
                    self._clear_empty_rows(self.targets.output)
        with ptx_sync.when(self.warp < 4 * groups):
            self._compute_units(units)

    def _count_units(self) -> None:
        """Units of a KV head before each sequence, for all sequences, by one warp."""
        batch = self.shape.batch
        each = -(-batch // 32)
        counts, total = [], constant(0)
        for i in range(each):
            row = self.lane * each + i
            _, queries, length = self._row(ptx_sync.minimum(row, batch - 1))
            count = self.split.cut(length, self.window, queries).chunks * self._parts(queries)
            counts.append(count.select(row < batch, 0))
            total = total + counts[-1]
        before = scan_warp(total, self.lane) - total
        for i, count in enumerate(counts):
            row = self.lane * each + i
            before = before + count
            with ptx_sync.when(row < batch):
                ptx.store_shared(self.starts + (row + 1) * 4, before)
        with ptx_sync.when(ptx_sync.equal(self.lane, 0)):
            ptx.store_shared(self.starts, constant(0))

    def _row(self, row: Int) -> tuple[Int, Int, Int]:
        """First query token of a row, how many it has, and its tokens; none where there is no query."""
        length = ptx.load_global(self._at(self.lens, row))
        if self.query_start is None:
            return row, constant(1), length
        first, end = (ptx.load_global(self._at(self.query_start, row + i)) for i in (0, 1))
        queries = ptx_sync.minimum(end - first, self.shape.queries)
        return first, queries, length.select(constant(0) < queries, 0)

    def _parts(self, queries: Int) -> Int:
        """Units that share the columns of so many query tokens."""
        if self.shape.queries == 1 or self.shape.parts == 1:
            return constant(self.shape.parts)
        return ptx_sync.ceil_div(queries * self.shape.group, self.shape.width)

    @staticmethod
    def _at(base: Int, index: Int) -> Int:
        """Address of a 32-bit element."""
        return base + index.wide() * 4

    def _row_of(self, place: Int) -> Int:
        """Row of the batch that a KV head's unit of this number belongs to: the last one that starts at or before it."""
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
            place = place - ptx.load_shared(self.starts + row * 4)[0]
            query, queries, length = self._row(row)
            parts = self._parts(queries)
            chunk, column = place // parts, (place % parts) * shape.width
            context = split.cut(length, self.window, queries)
            begin = context.begin + chunk * context.per_chunk
            count = ptx_sync.minimum(context.per_chunk, context.end - begin)
            slot, barrier = self._slot(i)
            ptx_sync.wait(barrier + 8 * SLOTS, ((i // SLOTS) & 1) ^ 1)
            place = head * (shape.group * shape.queries) + column
            partial = (row * split.max_chunks + chunk) * shape.rows + place
            told = context.chunks if shape.queries == 1 else queries
            with ptx_sync.when(ptx_sync.equal(self.lane, 0)):
                ptx.store_shared(slot, partial, begin * split.tile, count, context.length)
                ptx.store_shared(slot + 16, context.first, told, column, row * shape.heads + place)
            self._load_queries(slot + HEADER_BYTES, barrier, query, queries, head, column)

            def load_tile(j: Int, carry):
                (number,) = carry
                stage = number % stages
                ptx_sync.wait(self.empty + stage * 8, ((number // stages) & 1) ^ 1)
                target, token = self.ring + stage * self.layout.stage_bytes, (begin + j) * split.tile
                copies.start(target, self.full + stage * 8, self.lane, row, head, token, context.length)
                return [number + 1]

            return ptx.repeat(count, carry, load_tile)

        ptx.repeat(units, [constant(0)], load_unit)

    def _valid(self, queries: Int, column: Int) -> Int:
        """Columns of a unit that are a query's."""
        return ptx_sync.minimum(queries * self.shape.group - column, self.shape.width)

    def _load_queries(self, target: Int, barrier: Int, query: Int, queries: Int, head: Int, column: Int) -> None:
        """Copy a unit's queries; the first is the row's query token ``query``."""
        shape, size = self.shape, 2 * self.shape.stored.head_dim
        if shape.uniform:
            with ptx_sync.when(ptx_sync.equal(self.lane, 0)):
                ptx_sync.arrive_expecting(barrier, shape.query_bytes)
                source = (query * shape.heads + head * shape.group).wide() * size
                ptx_sync.copy_bulk(target, self.queries + source, shape.query_bytes, barrier)
            return
        valid = self._valid(queries, column)
        with ptx_sync.when(ptx_sync.equal(self.lane, 0)):
            ptx_sync.arrive_expecting(barrier, valid * size)
        ptx.sync_warp()
        with ptx_sync.when(self.lane < valid):
            mine = column + self.lane
            token, place = query + mine // shape.group, head * shape.group + mine % shape.group
            source = (token * shape.heads + place).wide() * size
            ptx_sync.copy_bulk(target + self.lane * size, self.queries + source, size, barrier)

    def _slot(self, i: Int) -> tuple[Int, Int]:
        """Where the queries of the i-th unit are, and the barrier that reports them."""
        number = i % SLOTS
        return self.slots + number * self.layout.slot_bytes, self.slot_full + number * 8

    def _clear_empty_rows(self, output: Int) -> None:
        """Zeros for those of the block's rows that have no tokens, and so no unit; by one warp."""
        shape, grid, block = self.shape, self.config.grid, ptx.block_index()
        pieces = shape.heads * shape.stored.head_dim // 8  # of 16 bytes

        def clear_row(i: Int, carry):
            row = block + i * grid

            def clear(j: Int, carry):
                piece = j * 32 + self.lane
                with ptx_sync.when(piece < pieces):
                    ptx_sync.store_global(output + (row * pieces + piece).wide() * 16, *[constant(0)] * 4)
                return carry

            with ptx_sync.when(ptx_sync.equal(ptx.load_global(self._at(self.lens, row)), 0)):
                ptx.repeat(-(-pieces // 32), [], clear)
            return carry

        ptx.repeat((constant(shape.batch + grid - 1) - block) // grid, [], clear_row)

    def _compute_units(self, units: Int) -> None:
        """The warps that compute."""
        stages, tile = self.layout.stages, self.config.tile
        warp = DecodeWarp(self.shape, self.lane)
        in_group = self.warp % 4

        def compute_unit(i: Int, carry):
            (number,) = carry
            slot, barrier = self._slot(i)
            ptx_sync.wait(barrier, (i // SLOTS) & 1)
            partial, begin, count, length = ptx.load_shared(slot, 4)
            first, told, column, output = ptx.load_shared(slot + 16, 4)
            queries = constant(1) if self.shape.queries == 1 else told
            valid = self.shape.width if self.shape.uniform else self._valid(queries, column)
            warp.load_queries(slot + HEADER_BYTES, valid)
            if isinstance(valid, Int):
                warp.look(column, queries, valid, length, first, self.window)
            self._release(barrier + 8 * SLOTS)

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
            result = UnitResult(self.shape, self.split, self.targets, partial, told, output)
            shared, barrier = (self.shared_stats, self.shared_outputs), self.group + 1
            warp.join(state, *shared, in_group, barrier, result, valid)
            result.merge_if_last(self.arrival, in_group, self.lane, barrier, valid)
            return [number + count]

        ptx.repeat(units, [constant(0)], compute_unit)

    def _release(self, barrier: Int) -> None:
        ptx.sync_warp()
        with ptx_sync.when(ptx_sync.equal(self.lane, 0)):
            ptx_sync.arrive(barrier)
