"""Int4 matmul for a batch of tokens: tensor cores fed with weights from registers (``wgmma``, sm_90a).

A block owns ``64 * rows`` outputs and ``tokens`` tokens, and walks over its inputs 128 at a time:

    memory warpgroup      TMA: tiles, scales and x of the next 128 inputs into a ring of ``stages``
    ``rows`` warpgroups   tiles of 64 outputs to bfloat16 (or float16) in registers, (q - zero) * scale, while the tensor cores
                          multiply the 128 inputs before with x, which they read from shared memory; then wait and free the stage

The result is [output, token] in registers; it is transposed on its way through shared memory. With ``split`` > 1 the inputs
are cut, each part writes float32 and XLA adds the parts.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int32

from pallas_kernels import ptx
from pallas_kernels.int4_matmul.tiles import BLOCK, STRIP, gate
from pallas_kernels.int4_matmul.warp_cut import MAX_SHARED
from pallas_kernels.int4_matmul.wgmma_registers import REGISTERS, SWIZZLED, dequantized, multiplied, ring_bytes, zeros
from pallas_kernels.int4_matmul.wgmma_results import store_part

MULTIPROCESSORS = 132
"""Of an H100 or H200: what a round of blocks fills."""


@dataclass(frozen=True, slots=True)
class WgmmaConfig:
    """How the work is cut.

    Attributes:
        rows: computing warpgroups, 64 outputs each.
        tokens: tokens of a block, a multiple of 8, at most 256.
        stages: depth of the ring.
        split: parts that the inputs are cut into.
        in_flight: products of a warpgroup that are under way at once: 1 of 128 inputs, or 2 of 64. With 1 ptxas moves most of the
            arithmetic on the next weights past the wait for the product, and a lone warpgroup's tensor cores idle meanwhile.
    """

    rows: int
    tokens: int
    stages: int
    split: int = 1
    in_flight: int = 1

    @property
    def sound(self) -> bool:
        """Do the fields go together?"""
        whole = self.tokens % 8 == 0 and 8 <= self.tokens <= 256
        return whole and self.in_flight in (1, 2) and 1 <= self.rows <= 4

    def shared_bytes(self, groups_per_tile: int) -> int:
        """Shared memory of a block."""
        return ring_bytes(self.rows, self.tokens, self.stages, groups_per_tile)


def int4_matmul_wgmma(
    x: Float[Array, "M K"],
    words: Int32[Array, "L Ns Kb 256"],
    meta: Int32[Array, "L Ns Kb Gt 16"],
    layer: Int32[Array, " 1"],
    *,
    outputs: int,
    config: WgmmaConfig,
    gated: bool = False,
) -> Float[Array, "M N"]:
    """``x @ w[layer].T`` for tiles as ``tiles.to_tiles`` writes them, accumulated in float32; ``outputs`` is N.

    ``gated`` as in ``int4_matmul_warp``, by XLA here: gate and up are rounded before they are multiplied.
    """
    m, k = x.shape
    filled = -(-m // config.tokens) * config.tokens
    stored = -(-outputs // 64) * 64  # what a warpgroup stores is swizzled, and so whole
    call = _call((filled, k), stored, words.shape, meta.shape[3], jnp.dtype(x.dtype).name, config)
    out = call(jnp.pad(x, ((0, filled - m), (0, 0))), words, meta, layer)
    out = out.sum(axis=0).astype(x.dtype) if config.split > 1 else out[0]
    return gate(out[:m, :outputs]) if gated else out[:m, :outputs]


@functools.lru_cache(maxsize=512)
def _call(
    x_shape: tuple[int, int], outputs: int, words_shape: tuple[int, ...], groups: int, dtype: str, config: WgmmaConfig
):
    (m, _), (_, all_strips, blocks, _) = x_shape, words_shape
    rows, tokens, stages, split = config.rows, config.tokens, config.stages, config.split
    shared = config.shared_bytes(groups)
    if shared > MAX_SHARED:
        raise ValueError(f"{config} takes {shared} bytes of shared memory, there are {MAX_SHARED}")
    if not config.sound:
        raise ValueError(f"{config}: 1 to 4 rows, tokens a multiple of 8 up to 256, 1 or 2 products in flight")
    strips = 4 * rows
    steps = -(-blocks // split)
    output_tiles = -(-all_strips // strips)
    out_dtype = jnp.dtype(jnp.float32 if split > 1 else dtype)

    def body(x_g, words_g, meta_g, layer_g, out_g, xs, ws, ms, full, empty, done):
        tile, token_tile, part = lax.axis_index("outputs"), lax.axis_index("tokens"), lax.axis_index("part")
        group = lax.axis_index("warpgroup")
        # The last part may be shorter; its missing blocks are read as zeros by the copy engine.
        first, token = part * steps, token_tile * tokens

        def slot_of(position):
            return position % stages if isinstance(position, int) else lax.rem(position, stages)

        def compute():
            def weights(position, half: int | None = None):
                """Of a block of inputs, or of half of it; waits for the block unless it's the second."""
                slot = slot_of(position)
                if half != 1:
                    plgpu.barrier_wait(full.at[slot])
                return dequantized(ws.at[slot], ms.at[slot], group, groups, dtype, half)

            def multiply(acc, w, position, half: int | None = None):
                slot = slot_of(position)
                return multiplied(acc, w, [xs.at[slot, h] for h in ((0, 1) if half is None else (half,))], dtype)

            def release(position):
                plgpu.barrier_arrive(empty.at[slot_of(position)])

            def whole(carry, position, last: bool = False):
                """Multiply one block of inputs; the weights of the next become floats."""
                acc = multiply(carry[0], carry[1], position)
                following = None if last else weights(position + 1)
                plgpu.wgmma_wait(0)
                if not last:
                    release(position)
                return acc, following

            def halves(carry, position, first: bool = False, last: bool = False):
                """The same in two products: while one runs, the weights of the other become floats."""
                acc = multiply(carry[0], carry[1], position, 0)
                plgpu.wgmma_wait(1)
                if not first:
                    release(position - 1)
                acc = multiply(acc, weights(position, 1), position, 1)
                plgpu.wgmma_wait(0 if last else 1)
                return acc, None if last else weights(position + 1, 0)

            carry = zeros(tokens), weights(0, None if config.in_flight == 1 else 0)
            if config.in_flight == 1:
                # Two blocks a turn, so that the registers written are never those that a running wgmma reads: with one set,
                # carried from turn to turn, ptxas runs everything one after the other (C7513).
                turns = (steps - 1) // 2
                carry = lax.fori_loop(0, turns, lambda i, carry: whole(whole(carry, 2 * i), 2 * i + 1), carry)
                for position in range(2 * turns, steps):
                    carry = whole(carry, position, last=position == steps - 1)
            else:
                carry = halves(carry, 0, first=True, last=steps == 1)
                carry = lax.fori_loop(1, steps - 1, lambda i, carry: halves(carry, i), carry) if steps > 2 else carry
                carry = halves(carry, steps - 1, last=True) if steps > 1 else carry
            acc, _ = carry
            acc = plgpu.layout_cast(acc, plgpu.Layout.WGMMA)
            if split > 1:
                store_part(acc, out_g, part, token, (tile * rows + group) * 64, m, outputs)
                return
            # The ring's x is free once every warpgroup is here: the result leaves through it.
            plgpu.barrier_arrive(done)
            plgpu.barrier_wait(done)
            result = plgpu.layout_cast(acc.astype(dtype), plgpu.Layout.WGMMA_TRANSPOSED)
            for g in range(rows):

                @pl.when(group == g)
                def _store(g=g):
                    exchange = xs.at[g // 2, g % 2]
                    exchange.T[...] = result
                    plgpu.commit_smem()
                    columns = pl.ds((tile * rows + g) * 64, 64)
                    plgpu.copy_smem_to_gmem(exchange, out_g.at[part, pl.ds(token, tokens), columns])

            plgpu.wait_smem_to_gmem(0, wait_read_only=True)

        def fetch():
            number = layer_g[0]

            @pl.loop(0, steps)
            def _(i):
                slot = lax.rem(i, stages)
                block = first + i

                @pl.when(i >= stages)
                def _():
                    plgpu.barrier_wait(empty.at[slot])

                # x first: on the way to the first block's weights the number of the layer has to be read.
                for half in range(2):
                    columns = pl.ds(block * BLOCK + half * 64, 64)
                    source = x_g.at[pl.ds(token, tokens), columns]
                    plgpu.copy_gmem_to_smem(source, xs.at[slot, half], full.at[slot])
                at = (number, pl.ds(tile * strips, strips), block)
                plgpu.copy_gmem_to_smem(words_g.at[at], ws.at[slot], full.at[slot])
                plgpu.copy_gmem_to_smem(meta_g.at[at], ms.at[slot], full.at[slot])

        @pl.when(group < rows)
        def _compute():
            plgpu.set_max_registers(REGISTERS[rows], action="increase")
            compute()

        @pl.when(group == rows)
        def _memory():
            plgpu.set_max_registers(24, action="decrease")
            fetch()

    body.__name__ = f"int4_matmul_wgmma_{m}x{x_shape[1]}x{outputs}"
    return jax.jit(
        plgpu.kernel(
            body,
            out_type=jax.ShapeDtypeStruct((split, m, outputs), out_dtype),
            scratch_types={
                "xs": plgpu.SMEM((stages, 2, tokens, 64), dtype, transforms=SWIZZLED),
                "ws": plgpu.SMEM((stages, strips, STRIP * BLOCK // 8), jnp.int32),
                "ms": plgpu.SMEM((stages, strips, groups, STRIP), jnp.int32),
                "full": plgpu.Barrier(num_arrivals=4, num_barriers=stages),
                "empty": plgpu.Barrier(num_arrivals=rows, num_barriers=stages),
                "done": plgpu.Barrier(num_arrivals=rows),
            },
            grid=(output_tiles, m // tokens, split),
            grid_names=("outputs", "tokens", "part"),
            num_threads=rows + 1,
            thread_name="warpgroup",
            compiler_params=ptx.compiler_params(approx_math=True),
        )
    )
