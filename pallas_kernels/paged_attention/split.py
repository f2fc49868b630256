"""How a context is cut into chunks that different blocks take, by its own length alone.

So the result of a sequence doesn't depend on its neighbours in the batch.
"""

from dataclasses import dataclass

from pallas_kernels.ptx import Int, constant
from pallas_kernels.ptx_sync import ceil_div, equal, minimum

MAX_CHUNKS = 32
"""As many as a warp has lanes: the merge holds one chunk's maximum and sum in each. Longer contexts have longer chunks."""


@dataclass(frozen=True, slots=True)
class Context:
    """A sequence's tokens as tiles and chunks, in the kernel.

    Attributes:
        length: tokens.
        first: first token that a query sees.
        begin, end: tiles that hold what it sees.
        per_chunk: tiles of each chunk but the last.
        chunks: how many; 0 for an empty context.
    """

    length: Int
    first: Int
    begin: Int
    end: Int
    per_chunk: Int
    chunks: Int


@dataclass(frozen=True, slots=True)
class Split:
    """Tiles of ``tile`` tokens, chunks of at least ``chunk`` tokens, at most ``max_chunks`` of them."""

    tile: int
    chunk: int
    max_chunks: int

    @classmethod
    def of(cls, *, tile: int, chunk: int, table_tokens: int) -> "Split":
        """For contexts of up to ``table_tokens``."""
        if chunk % tile:
            raise ValueError(f"{chunk=} must be divisible by {tile=}")
        return cls(tile, chunk, max(1, min(MAX_CHUNKS, -(-table_tokens // chunk))))

    def cut(self, length: Int, window: Int, queries: Int | int = 1) -> Context:
        """A context of ``length`` tokens of which each of the last ``queries`` sees ``window``, itself included, or all for 0."""
        unlimited = equal(window, 0)
        first = constant(0).select(unlimited, length - minimum(length, window + queries - 1))
        begin, end = first // self.tile, ceil_div(length, self.tile)
        tiles = end - begin
        wanted = minimum(ceil_div(tiles, self.chunk // self.tile), self.max_chunks)
        per_chunk = ceil_div(tiles, wanted.select(constant(0) < wanted, 1))
        chunks = ceil_div(tiles, per_chunk.select(constant(0) < per_chunk, 1))
        return Context(length, first, begin, end, per_chunk, chunks)
