"""How the work of the int4 matmul for few tokens is cut, and the shared memory that this takes."""

from dataclasses import dataclass

from pallas_kernels.int4_matmul.tiles import BLOCK, STRIP

TILE_BYTES = STRIP * BLOCK // 2
MAX_SHARED = 227 * 1024
_ZERO_BYTES = BLOCK * 2


@dataclass(frozen=True, slots=True)
class WarpConfig:
    """How the work is cut.

    Attributes:
        strips: strips of 16 outputs that a block owns.
        warps: warps of a block, a multiple of 4; they split the inputs.
        stages: blocks of inputs that a warp holds or has under way.
        blocks: at most so many blocks, each of which walks over several tiles without draining its ring; 0: one tile each.
    """

    strips: int
    warps: int
    stages: int
    blocks: int = 0

    def grid(self, all_strips: int) -> tuple[int, int]:
        """Blocks, and tiles that each walks over."""
        tiles = -(-all_strips // self.strips)
        rounds = -(-tiles // self.blocks) if self.blocks else 1
        return -(-tiles // rounds), rounds

    def ring_bytes(self, tokens: int, groups_per_tile: int) -> int:
        """Shared memory for tiles and x."""
        return self.warps * self.stages * stage_bytes(self.strips, groups_per_tile, tokens) + _ZERO_BYTES

    def shared_bytes(self, tokens: int, groups_per_tile: int, rounds: int, normed_inputs: int = 0) -> int:
        """Shared memory of a block: the ring and the exchange of accumulators, which may take the ring's place at the end.

        Args:
            normed_inputs: where the block normalizes x itself, its inputs. They are not part of the ring then.
        """
        ring = self.ring_bytes(0 if normed_inputs else tokens, groups_per_tile)
        exchange = self.warps * tokens * row_floats(self.strips) * 4
        normed = tokens * (normed_inputs * 2 + self.warps * 4) if normed_inputs else 0
        return normed + (max(ring, exchange) if rounds == 1 else ring + exchange)


def stage_bytes(strips: int, groups_per_tile: int, tokens: int) -> int:
    """Of a ring: tiles and scales of 128 inputs, and those of as many tokens."""
    return strips * (TILE_BYTES + groups_per_tile * STRIP * 4) + tokens * BLOCK * 2


def row_floats(strips: int) -> int:
    """Of a token's accumulators where warps exchange them."""
    # 4 more than a row: the warp's stores (rows 2 apart, 8 columns) and loads then touch each bank once.
    return strips * STRIP + 4
