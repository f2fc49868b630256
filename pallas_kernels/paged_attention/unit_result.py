"""Where the result of a unit of work goes: a warpgroup's share of one context, for some columns of one KV head.

Where the kernel merges (``decode_layout.merges``), the result of a context of one chunk is the output itself. Else it is stored as
float32, and the warpgroup that is the last to store a chunk of that context merges all of them, in the chunks' order whichever it
is. Elsewhere all results are stored for a second kernel to merge. With one query token a row the bits are the same both ways: a
context of one chunk is divided by its sum here, and what the second kernel finds is a sum of 1.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pallas_kernels import ptx, ptx_sync
from pallas_kernels.paged_attention.chunk_merge import Partials, inverse, merge_chunks, store_column
from pallas_kernels.ptx import Int, constant
from pallas_kernels.ptx_float import Float, pack_words

if TYPE_CHECKING:
    from pallas_kernels.paged_attention.decode_layout import Shape
    from pallas_kernels.paged_attention.split import Split


@dataclass(frozen=True, slots=True)
class Targets:
    """Addresses of arrays in global memory.

    Attributes:
        output: [B, N, H] in the type of the queries, where this kernel merges; None where a second one does.
        partials: of chunks; None where each context is one.
        counters: [B, K, parts], how many of the chunks are stored; 0 before and after. None where nothing is merged here.
    """

    output: Int | None = None
    partials: Partials | None = None
    counters: Int | None = None

    @classmethod
    def of(cls, split: "Split", addresses: list[Int], *, merges: bool) -> "Targets":
        """Of the kernel's last arrays, in the order of its call; ``merges``: no second kernel does."""
        if not merges:
            outputs, stats = addresses
            return cls(partials=Partials(outputs, stats))
        if split.max_chunks == 1:
            return cls(output=addresses[0])
        counters, output, outputs, stats = addresses
        return cls(output, Partials(outputs, stats), counters)


class UnitResult:
    """The result of one unit; ``chunks`` and the row of the output are only looked at where there is one query token a row."""

    def __init__(self, shape: "Shape", split: "Split", targets: Targets, first: Int, chunks: Int, output_row: Int):
        """``first`` and ``output_row`` are the rows of the unit's first column among the partial results and in the output."""
        self.shape, self.split, self.targets = shape, split, targets
        self.first, self.chunks, self.output_row = first, chunks, output_row
        self.head_dim = shape.stored.head_dim

    def normalized(self, factor: Float, total: Float) -> Float:
        """A factor on a column's output, divided by the column's sum where the unit is all of a context."""
        if self.shape.queries > 1:
            return factor
        if self.targets.partials is None:
            return factor * inverse(total)
        return factor * inverse(total).select(self.chunks < 2, 1.0)

    def store_stats(self, column: Int, maximum: Float, total: Float) -> None:
        """Of a column, by one thread."""
        if self.targets.partials is None:
            return
        address = self.targets.partials.stats + (self.first + column).wide() * 8
        if self.targets.output is None:
            if self.shape.queries == 1:
                total = Float(1.0).select(self.chunks < 2, total)
            ptx_sync.store_global(address, maximum.value, total.value)
            return
        with ptx_sync.when(constant(1) < self.chunks):
            ptx_sync.store_global(address, maximum.value, total.value)

    def store_pair(self, pair: Int, low: Float, high: Float) -> None:
        """Values (2 pair, 2 pair + 1) of the unit's columns, one column of H after the other."""
        output, partials = self.targets.output, self.targets.partials
        if output is not None and partials is not None:
            with ptx_sync.when(self.chunks < 2):
                self._store_output(output, pair, low, high)
            with ptx_sync.when(constant(1) < self.chunks):
                self._store_partial(partials, pair, low, high)
        elif output is not None:
            self._store_output(output, pair, low, high)
        elif partials is not None:
            self._store_partial(partials, pair, low, high)

    def _store_partial(self, partials: Partials, pair: Int, low: Float, high: Float) -> None:
        place = self.first * (self.head_dim // 2) + pair
        ptx_sync.store_global(partials.outputs + place.wide() * 8, low.value, high.value)

    def _store_output(self, output: Int, pair: Int, low: Float, high: Float) -> None:
        place = self.output_row * (self.head_dim // 2) + pair
        ptx_sync.store_global(output + place.wide() * 4, pack_words(low, high, self.shape.query_dtype))

    def merge_if_last(self, arrival: Int, warp: Int, lane: Int, barrier: Int, valid: "Int | int") -> None:
        """Merge the context's chunks for the unit's ``valid`` columns if all others are stored; by a warpgroup, after its stores.

        ``arrival`` is a word in shared memory that nothing else uses: the next unit's number is written to it two barriers
        (those of its ``join``) after this one's was read.
        """
        output, partials, counters = self.targets.output, self.targets.partials, self.targets.counters
        if output is None or partials is None or counters is None:
            return
        shape = self.shape
        with ptx_sync.when(constant(1) < self.chunks):
            last = self.chunks - 1
            # The barrier puts all stores of the warpgroup before the one thread's release, and its acquire before all loads.
            ptx_sync.sync_warpgroup(barrier)
            with ptx_sync.when(ptx_sync.equal(warp * 32 + lane, 0)):
                unit = self.output_row // shape.group * shape.parts + self.output_row % shape.group // shape.width
                ptx.store_shared(arrival, ptx_sync.count_to(counters + unit.wide() * 4, last))
            ptx_sync.sync_warpgroup(barrier)
            with ptx_sync.when(ptx_sync.equal(ptx.load_shared(arrival)[0], last)):
                self._merge(output, partials, warp, lane, valid)

    def _merge(self, output: Int, partials: Partials, warp: Int, lane: Int, valid: "Int | int") -> None:
        """All chunks of the unit's columns; each warp takes every fourth column."""
        shape, most = self.shape, self.split.max_chunks
        first = self.output_row + self.output_row // shape.heads * ((most - 1) * shape.heads)

        def merge_column(i: Int, carry):
            column = warp + i * 4
            sizes = {"most": most, "rows": shape.rows, "head_dim": self.head_dim}
            values = merge_chunks(partials, first + column, self.chunks, lane, **sizes)
            row = self.output_row + column
            store_column(output, row, values, lane, head_dim=self.head_dim, dtype=shape.query_dtype)
            return carry

        columns = valid if isinstance(valid, Int) else constant(valid)
        ptx.repeat((columns + 3 - warp) // 4, [], merge_column)
