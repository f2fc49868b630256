"""Which heads and which matrix a warp has: heads that share a matrix are its columns, a tile is some of them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxlib.mlir import ir

from pallas_kernels import ptx_sync
from pallas_kernels.ptx import Int, constant

COLUMNS = 8
"""Of an instruction."""
OUTPUTS = 32
"""Of a warp."""
WARPS = 4
"""Of a block."""
_BLOCKS_OF_A_WAVE = 132


@dataclass(frozen=True, slots=True)
class Group:
    """Heads that follow each other in a token: ``matrices`` times ``heads`` of them, each ``heads`` share a matrix."""

    matrices: int
    heads: int

    @property
    def width(self) -> int:
        """Heads of a token."""
        return self.matrices * self.heads


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a call: queries, keys and values with RoPE, or one group without.

    Attributes:
        tokens: T.
        groups: of heads, in the order of the input.
        head_dim: H.
        dtype: bf16 or f16.
        divisor: of the products of the last group.
        turns_values: whether the last group has a matrix; without one its heads stay as they are.
    """

    tokens: int
    groups: tuple[Group, ...]
    head_dim: int
    dtype: str
    divisor: float
    turns_values: bool = True

    @property
    def ropes(self) -> bool:
        """Whether all but the last group are turned by RoPE and have a basis in each layer."""
        return len(self.groups) > 1

    @property
    def heads(self) -> int:
        """Of a token."""
        return sum(g.width for g in self.groups)

    @property
    def warps_per_tile(self) -> int:
        """Each with its outputs."""
        return self.head_dim // OUTPUTS

    def tiles(self, group: Group, columns: int) -> int:
        """Of each of a group's matrices."""
        return -(-self.tokens * group.heads // columns)

    def all_tiles(self, columns: int) -> int:
        """Of all groups and matrices."""
        return sum(g.matrices * self.tiles(g, columns) for g in self.groups)

    @property
    def columns(self) -> int:
        """Of a tile: twice as many where the matrices would else be read by more than one wave of blocks."""
        few = self.all_tiles(COLUMNS) * self.warps_per_tile <= _BLOCKS_OF_A_WAVE * WARPS
        return COLUMNS if few else 2 * COLUMNS

    @property
    def ends(self) -> list[int]:
        """Number of the first tile after each group."""
        return list(itertools.accumulate(g.matrices * self.tiles(g, self.columns) for g in self.groups))

    @property
    def blocks(self) -> int:
        """Of the grid."""
        return -(-self.all_tiles(self.columns) * self.warps_per_tile // WARPS)


class Place(NamedTuple):
    """Of a column: where its head is. Past the last column they are the last one's."""

    token: Int
    head: Int  # among all heads of the input
    out_head: Int  # among all heads of its group's output
    inside: ir.Value  # whether there is such a column


class Tile:
    """A tile of the running thread; numbers past the last are the last."""

    def __init__(self, shape: Shape, number: Int):
        self.shape = shape
        self.number = ptx_sync.minimum(number, shape.ends[-1] - 1)
        first_of_last = shape.ends[-2] if len(shape.groups) > 1 else 0
        self.of_last = constant(first_of_last) < self.number + 1
        """Whether it is one of the last group's."""
        self._places: list[tuple[Int, Int]] = []  # of each group, were the tile one of its own: matrix, first column
        for group, end in zip(shape.groups, shape.ends, strict=True):
            tiles = shape.tiles(group, shape.columns)
            number = self.number - (end - group.matrices * tiles)
            self._places.append((number // tiles, number % tiles * shape.columns))

    def pick(self, options: Sequence[Int]) -> Int:
        """Its group's option."""
        result = options[-1]
        for option, end in reversed(list(zip(options[:-1], self.shape.ends, strict=False))):
            result = option.select(self.number < end, result)
        return result

    def matrix(self, stacks: Sequence[Int], layer: Int) -> Int:
        """Address of its matrix: stacks [L, K, H, H], the last group's [H, H] (any other will do where it is left out)."""
        size, options = 2 * self.shape.head_dim**2, []
        groups = list(zip(self.shape.groups, self._places, strict=True))
        for stack, (group, (matrix, _)) in zip(stacks, groups, strict=False):
            layered = len(options) < len(self.shape.groups) - 1
            options.append(stack + (layer * group.matrices + matrix).wide() * size if layered else stack)
        return self.pick(options + [stacks[0]] * (len(groups) - len(options)))

    def place(self, column: Int) -> Place:
        """Of a column of the tile."""
        tokens, found, first = self.shape.tokens, [], 0
        for group, (matrix, first_column) in zip(self.shape.groups, self._places, strict=True):
            number = first_column + column
            inside = Int(number < tokens * group.heads)
            number = ptx_sync.minimum(number, tokens * group.heads - 1)
            token, head = number // group.heads, matrix * group.heads + number % group.heads
            found.append((token, token * self.shape.heads + head + first, token * group.width + head, inside))
            first += group.width
        token, head, out_head, inside = (self.pick(options) for options in zip(*found, strict=True))
        return Place(token, head, out_head, inside.value)


def pick(index: Int, options: Sequence[Int]) -> Int:
    """``options[index]``."""
    result = options[-1]
    for number, option in enumerate(options[:-1]):
        result = option.select(ptx_sync.equal(index, number), result)
    return result
