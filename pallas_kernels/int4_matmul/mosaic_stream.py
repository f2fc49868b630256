"""Int4 matmul for a batch of tokens by blocks that stay: each works through its share of all tiles without a pause (stream-K).

A tile is ``64 * rows`` outputs and ``tokens`` tokens, its sum goes over blocks of 128 inputs (steps). As in ``mosaic_wgmma`` a
memory warpgroup fills a ring of ``stages`` steps and ``rows`` warpgroups make weights from it and multiply; but there is one block
for each multiprocessor (or a cluster of two for two), which takes tile after tile, and the ring is filled across their borders.
Two blocks of a cluster own neighbouring outputs and fetch the same x once, each one half of it for both (multicast).

The tiles that are left for a last, partial round are cut along their steps: ``sharing`` units take equal shares of all steps of all
those tiles (``Shares``). Who has the first step of a tile owns it; the others write what they have, in float32, before they do
anything else of that round, and raise a flag. The owner adds those parts in a fixed order. Flags are zero before and after a call.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int32

from pallas_kernels import ptx
from pallas_kernels.int4_matmul.mosaic_wgmma import MULTIPROCESSORS
from pallas_kernels.int4_matmul.tiles import BLOCK, STRIP
from pallas_kernels.int4_matmul.warp_cut import MAX_SHARED
from pallas_kernels.int4_matmul.wgmma_registers import REGISTERS, SWIZZLED, dequantized, multiplied, ring_bytes, zeros
from pallas_kernels.int4_matmul.wgmma_results import hand_over, store_result, take_over

FLAGS = 4 * MULTIPROCESSORS
"""One for every warpgroup that may write a part. The same number for all calls, so that they share one array of zeros."""


@dataclass(frozen=True, slots=True)
class StreamConfig:
    """How the work is cut.

    Attributes:
        rows: computing warpgroups, 64 outputs each.
        tokens: tokens of a tile, a multiple of 8 * ``cluster``, at most 256.
        stages: depth of the ring.
        cluster: blocks that share x, 1 or 2.
        sharing: units (clusters) among which the steps of the last round's tiles are divided; 0: each takes one tile.
    """

    rows: int
    tokens: int
    stages: int
    cluster: int = 1
    sharing: int = 0

    @property
    def units(self) -> int:
        """Clusters on the GPU."""
        return MULTIPROCESSORS // self.cluster

    @property
    def sound(self) -> bool:
        """Do the fields go together?"""
        whole = self.tokens % (8 * self.cluster) == 0 and 8 <= self.tokens <= 256
        return whole and 1 <= self.rows <= 4 and self.cluster in (1, 2) and 0 <= self.sharing <= self.units

    def tiles(self, strips: int, m: int) -> int:
        """Tiles of a unit's size."""
        return -(-strips // (4 * self.rows * self.cluster)) * -(-m // self.tokens)

    def shared_bytes(self, groups_per_tile: int) -> int:
        """Shared memory of a block."""
        return ring_bytes(self.rows, self.tokens, self.stages, groups_per_tile)


@dataclass(frozen=True, slots=True)
class Shares:
    """Which steps of which tiles a unit takes.

    Attributes:
        units: that there are.
        tiles, steps: of the matmul, and of each tile.
        sharing: units that take part in the last round, at least one for each of its tiles and at most one for each step.
    """

    units: int
    tiles: int
    steps: int
    sharing: int

    @classmethod
    def of(cls, config: StreamConfig, tiles: int, steps: int) -> "Shares":
        """As ``config`` says."""
        rest = tiles % config.units
        return cls(config.units, tiles, steps, min(max(config.sharing, rest), rest * steps))

    @property
    def rounds(self) -> int:
        """Whole tiles of every unit."""
        return self.tiles // self.units

    @property
    def rest(self) -> int:
        """Tiles of the last round."""
        return self.tiles % self.units

    def border(self, share: Any) -> Any:
        """First step of a share, counted over all tiles of the last round."""
        return lax.div(share * (self.rest * self.steps), self.sharing)

    def segments(self, unit: Any) -> tuple[Any, Any, Any, Any]:
        """Of a unit: its share, that share's first tile and first step, and how many segments (tiles or parts of one) it has.

        Shares count backwards: an owner waits for units of lower numbers, which the GPU starts first.
        """
        share = self.sharing - 1 - unit
        if not self.rest:
            return share, jnp.int32(0), jnp.int32(0), jnp.int32(self.rounds)
        begin, end = self.border(share), self.border(share + 1)
        first = lax.div(begin, self.steps)
        touched = lax.div(end - 1, self.steps) - first + 1
        return share, first, begin, self.rounds + jnp.where(unit < self.sharing, touched, 0)

    def segment(self, unit: Any, share: Any, first: Any, begin: Any, number: Any) -> tuple[Any, Any, Any]:
        """Tile, first step and last step (exclusive) of a unit's segment of this number."""
        whole = number < self.rounds
        rest = first + number - self.rounds
        tile = jnp.where(whole, number * self.units + unit, self.rounds * self.units + rest)
        if not self.rest:
            return tile, jnp.int32(0), jnp.int32(self.steps)
        start = jnp.where(whole, 0, jnp.maximum(begin - rest * self.steps, 0))
        stop = jnp.where(whole, self.steps, jnp.minimum(self.border(share + 1) - rest * self.steps, self.steps))
        return tile, start, stop

    def helpers(self, share: Any, tile: Any) -> Any:
        """Shares after this one that have a part of the same tile of the last round."""
        end = (tile - self.rounds * self.units + 1) * self.steps
        # Shares whose border lies before the tile's end.
        return lax.div(end * self.sharing - 1, self.rest * self.steps) - share


def int4_matmul_stream(
    x: Float[Array, "M K"],
    words: Int32[Array, "L Ns Kb 256"],
    meta: Int32[Array, "L Ns Kb Gt 16"],
    layer: Int32[Array, " 1"],
    *,
    outputs: int,
    config: StreamConfig,
    gated: bool = False,
) -> Float[Array, "M N"]:
    """``x @ w[layer].T`` for tiles as ``tiles.to_tiles`` writes them, accumulated in float32; ``outputs`` is N.

    ``gated`` as in ``int4_matmul_warp``.
    """
    m, k = x.shape
    filled = -(-m // config.tokens) * config.tokens
    stored = -(-outputs // 64) * 64
    call = _call(m, (filled, k), stored, words.shape, meta.shape[3], jnp.dtype(x.dtype).name, config, gated)
    # All calls of a program share these zeros: every kernel leaves them as it found them, and kernels run one after the other.
    out, _ = call(jnp.pad(x, ((0, filled - m), (0, 0))), words, meta, layer, jnp.zeros(FLAGS, jnp.int32))
    return out[:, : outputs // 2 if gated else outputs]


@functools.lru_cache(maxsize=512)
def _call(
    m: int,
    x_shape: tuple[int, int],
    outputs: int,
    words_shape: tuple[int, ...],
    groups: int,
    dtype: str,
    config: StreamConfig,
    gated: bool,
):
    _, all_strips, steps, _ = words_shape
    rows, tokens, stages, cluster = config.rows, config.tokens, config.stages, config.cluster
    shared = config.shared_bytes(groups)
    if shared > MAX_SHARED:
        raise ValueError(f"{config} takes {shared} bytes of shared memory, there are {MAX_SHARED}")
    if not config.sound:
        raise ValueError(
            f"{config}: at most 4 rows, tokens a multiple of 8 * cluster up to 256, sharing up to the units"
        )
    strips = 4 * rows
    output_tiles = -(-all_strips // (strips * cluster))
    shares = Shares.of(config, config.tiles(all_strips, m), steps)
    units = min(config.units, max(shares.sharing, shares.units if shares.rounds else 0))
    parted = shares.sharing > shares.rest
    shared_by = "pair" if cluster > 1 else None

    def body(x_g, words_g, meta_g, layer_g, flags_g, out_g, parts_g, xs, ws, ms, full, empty):
        unit, group = lax.axis_index("unit"), lax.axis_index("warpgroup")
        pair = lax.axis_index("pair") if cluster > 1 else jnp.int32(0)
        share, first, begin, count = shares.segments(unit)

        def segment(number):
            """Its first strip, first token, first and last step, and its tile."""
            tile, start, stop = shares.segment(unit, share, first, begin, number)
            strip = (lax.rem(tile, output_tiles) * cluster + pair) * strips
            return strip, lax.div(tile, output_tiles) * tokens, start, stop, tile

        def slot_of(position):
            return lax.rem(position, stages)

        def part_of(other):
            """Where this warpgroup's like in another unit, or itself, keeps its part."""
            return (other * cluster + pair) * rows + group

        def weights(position, half: int):
            """Of half of a block of inputs; waits for the block unless it's the second."""
            slot = slot_of(position)
            if half == 0:
                plgpu.barrier_wait(full.at[slot])
            return dequantized(ws.at[slot], ms.at[slot], group, groups, dtype, half)

        def release(position):
            plgpu.barrier_arrive(empty.at[slot_of(position)])

        def step(position, carry, earlier, last: bool):
            """Two products; while one runs, the weights of the other become floats. ``earlier``: a step of this segment."""
            slot = slot_of(position)
            acc = multiplied(carry[0], carry[1], [xs.at[slot, 0]], dtype)
            plgpu.wgmma_wait(1)
            pl.when(earlier)(lambda: release(position - 1))
            acc = multiplied(acc, weights(position, 1), [xs.at[slot, 1]], dtype)
            plgpu.wgmma_wait(0 if last else 1)
            return acc, None if last else weights(position + 1, 0)

        def compute(number, position):
            strip, token, start, stop, tile = segment(number)
            carry = zeros(tokens), weights(position, 0)
            carry = lax.fori_loop(
                0, stop - start - 1, lambda i, carry: step(position + i, carry, i > 0, last=False), carry
            )
            end = position + (stop - start) - 1
            acc, _ = step(end, carry, stop - start > 1, last=True)
            release(end)
            row = (strip + 4 * group) * STRIP
            if not parted:
                store_result(acc, out_g, token, row, m, outputs, dtype, gated=gated)
                return end + 1

            @pl.when(start > 0)
            def _part():
                hand_over(acc, parts_g, flags_g, part_of(unit))

            @pl.when(start == 0)
            def _whole():
                others = jnp.where(stop == steps, 0, shares.helpers(share, tile))

                def add(i, acc):
                    return take_over(acc, parts_g, flags_g, part_of(unit - 1 - i))

                total = lax.fori_loop(0, others, add, acc)
                store_result(total, out_g, token, row, m, outputs, dtype, gated=gated)

            return end + 1

        def fetch(number, position):
            strip, token, start, stop, _ = segment(number)
            layer_number = layer_g[0]

            def copy(block, position):
                slot = slot_of(position)

                @pl.when(position >= stages)
                def _():
                    plgpu.barrier_wait(empty.at[slot])

                for half in range(2):
                    source = x_g.at[pl.ds(token, tokens), pl.ds(block * BLOCK + half * 64, 64)]
                    plgpu.copy_gmem_to_smem(source, xs.at[slot, half], full.at[slot], collective_axes=shared_by)
                at = (layer_number, pl.ds(strip, strips), block)
                plgpu.copy_gmem_to_smem(words_g.at[at], ws.at[slot], full.at[slot])
                plgpu.copy_gmem_to_smem(meta_g.at[at], ms.at[slot], full.at[slot])
                return position + 1

            return lax.fori_loop(start, stop, copy, position)

        @pl.when(group < rows)
        def _compute():
            plgpu.set_max_registers(REGISTERS[rows], action="increase")
            lax.fori_loop(0, count, compute, jnp.int32(0))

        @pl.when(group == rows)
        def _memory():
            plgpu.set_max_registers(24, action="decrease")
            filled = lax.fori_loop(0, count, fetch, jnp.int32(0))
            if cluster > 1:
                # The other block still releases slots of both: this one must not end before.
                left = jnp.minimum(filled, stages)

                @pl.loop(0, left)
                def _(i):
                    plgpu.barrier_wait(empty.at[slot_of(filled - left + i)])

    parts = (units * cluster * rows, 64 * tokens) if parted else (1, 4)
    empty: Any = plgpu.Barrier(num_arrivals=rows, num_barriers=stages)
    if cluster > 1:
        empty = plgpu.ClusterBarrier(collective_axes=("pair",), num_arrivals=rows, num_barriers=stages)
    body.__name__ = f"int4_matmul_stream_{m}x{x_shape[1]}x{outputs}"
    kernel = plgpu.kernel(
        body,
        out_type=(
            jax.ShapeDtypeStruct((m, outputs // 2 if gated else outputs), jnp.dtype(dtype)),
            jax.ShapeDtypeStruct(parts, jnp.float32),
        ),
        scratch_types={
            "xs": plgpu.SMEM((stages, 2, tokens, 64), dtype, transforms=SWIZZLED),
            "ws": plgpu.SMEM((stages, strips, STRIP * BLOCK // 8), jnp.int32),
            "ms": plgpu.SMEM((stages, strips, groups, STRIP), jnp.int32),
            "full": plgpu.Barrier(num_arrivals=4, num_barriers=stages),
            "empty": empty,
        },
        grid=(units,),
        grid_names=("unit",),
        **({"cluster": (cluster,), "cluster_names": ("pair",)} if cluster > 1 else {}),
        num_threads=rows + 1,
        thread_name="warpgroup",
        compiler_params=ptx.compiler_params(approx_math=True),
    )
    return jax.jit(kernel)
