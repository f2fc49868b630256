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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu import fragmented_array as fa
from jax.experimental.mosaic.gpu import mma_utils, utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import llvm
from jaxtyping import Array, Float, Int32

from pallas_kernels import ptx
from pallas_kernels.int4_matmul import nibbles
from pallas_kernels.int4_matmul.mosaic_warp import MAX_SHARED
from pallas_kernels.int4_matmul.tiles import BLOCK, STRIP

MULTIPROCESSORS = 132
"""Of an H100 or H200: what a round of blocks fills."""
_REGISTERS = {1: 232, 2: 240, 3: 160, 4: 112}
"""Registers of a thread of so many computing warpgroups, what ``setmaxnreg`` can give beside a memory warpgroup of 24."""
_SWIZZLED: tuple[Any, ...] = (
    plgpu.TilingTransform((8, 64)),  # pyright: ignore[reportAbstractUsage]
    plgpu.SwizzleTransform(128),  # pyright: ignore[reportAbstractUsage]
)
_ACCUMULATOR = plgpu.Layout._WGMMA_ACC_32BIT


@dataclass(frozen=True, slots=True)
class Piece:
    """Blocks ``block`` to ``block + count - 1``: ``tokens`` tokens, from ``start`` on, of the tiles from ``tile`` on."""

    block: int
    tile: int
    count: int
    start: int
    tokens: int


@dataclass(frozen=True, slots=True)
class WgmmaConfig:
    """How the work is cut.

    Attributes:
        rows: computing warpgroups, 64 outputs each.
        tokens: tokens of a block, a multiple of 8, at most 256.
        stages: depth of the ring.
        split: parts that the inputs are cut into.
        tail: tiles that don't fill a last round of multiprocessors are cut in two, so many tokens (a multiple of 8) and the rest of
            ``tokens``, and the multiprocessors that would idle take the rests; 0: they are not. Only without ``split``.
    """

    rows: int
    tokens: int
    stages: int
    split: int = 1
    tail: int = 0

    @property
    def sound(self) -> bool:
        """Do the fields go together?"""
        tail = not self.tail or (self.split == 1 and self.tail % 8 == 0 and 0 < self.tail < self.tokens)
        return tail and 1 <= self.rows <= 4 and self.tokens % 8 == 0 and 8 <= self.tokens <= 256

    def pieces(self, all_strips: int, m: int) -> "list[Piece]":
        """What the blocks of an uncut sum do, in the order in which the GPU starts them: large pieces first."""
        tiles = -(-all_strips // (4 * self.rows)) * -(-m // self.tokens)
        whole = tiles // MULTIPROCESSORS * MULTIPROCESSORS if self.tail else tiles
        found = [Piece(0, 0, whole, 0, self.tokens)] if whole else []
        if whole < tiles:
            rest, block = tiles - whole, whole
            for start, tokens in ((0, self.tail), (self.tail, self.tokens - self.tail)):
                found.append(Piece(block, whole, rest, start, tokens))
                block += rest
        return found

    def shared_bytes(self, groups_per_tile: int) -> int:
        """Shared memory of a block."""
        weights = 4 * self.rows * (STRIP * BLOCK // 2 + groups_per_tile * STRIP * 4)
        return self.stages * (weights + self.tokens * BLOCK * 2) + 1024


def int4_matmul_wgmma(
    x: Float[Array, "M K"],
    words: Int32[Array, "L Ns Kb 256"],
    meta: Int32[Array, "L Ns Kb Gt 16"],
    layer: Int32[Array, " 1"],
    *,
    outputs: int,
    config: WgmmaConfig,
) -> Float[Array, "M N"]:
    """``x @ w[layer].T`` for tiles as ``tiles.to_tiles`` writes them, accumulated in float32; ``outputs`` is N."""
    m, k = x.shape
    filled = -(-m // config.tokens) * config.tokens
    stored = -(-outputs // 64) * 64  # what a warpgroup stores is swizzled, and so whole
    call = _call((filled, k), stored, words.shape, meta.shape[3], jnp.dtype(x.dtype).name, config)
    out = call(jnp.pad(x, ((0, filled - m), (0, 0))), words, meta, layer)
    if config.split > 1:
        return out.sum(axis=0).astype(x.dtype)[:m, :outputs]
    return out[0, :m, :outputs]


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
        raise ValueError(
            f"{config}: at most 4 rows, tokens a multiple of 8 up to 256, a tail likewise and less, without a split"
        )
    strips = 4 * rows
    steps = -(-blocks // split)
    pieces, output_tiles = config.pieces(all_strips, m), -(-all_strips // strips)
    out_dtype = jnp.dtype(jnp.float32 if split > 1 else dtype)

    def body(x_g, words_g, meta_g, layer_g, out_g, xs, ws, ms, full, empty, done):
        tile, token_tile, part = lax.axis_index("outputs"), lax.axis_index("tokens"), lax.axis_index("part")
        group = lax.axis_index("warpgroup")
        # The last part may be shorter; its missing blocks are read as zeros by the copy engine.
        first = part * steps

        def work(do):
            """``do(tile, first token, tokens)`` for what this block owns."""
            if not config.tail:
                do(tile, token_tile * tokens, tokens)
                return
            for piece in pieces:

                @pl.when((tile >= piece.block) & (tile < piece.block + piece.count))
                def _(piece=piece):
                    index = tile - piece.block + piece.tile
                    start = lax.div(index, output_tiles) * tokens + piece.start
                    do(lax.rem(index, output_tiles), start, piece.tokens)

        def x_of(slot, half: int, count: int):
            return xs.at[slot, half] if count == tokens else xs.at[slot, half, pl.ds(0, count)]

        def compute(tile, token, count: int):
            def weights(slot):
                plgpu.barrier_wait(full.at[slot])
                return _dequantize(ws.at[slot], ms.at[slot], group, groups, dtype)

            def multiply(acc, w, position, fetch: bool):
                """Multiply one block of inputs while the weights of the next become floats."""
                slot = lax.rem(position, stages)
                acc = _multiply(acc, w, x_of(slot, 0, count), x_of(slot, 1, count), dtype)
                following = weights(lax.rem(position + 1, stages)) if fetch else None
                plgpu.wgmma_wait(0)
                if fetch:
                    plgpu.barrier_arrive(empty.at[slot])
                return acc, following

            # Two blocks a turn, so that the registers written are never those that a running wgmma reads: with one set, carried
            # from turn to turn, ptxas runs everything one after the other (C7513).
            def two(i, carry):
                acc, even = carry
                acc, odd = multiply(acc, even, 2 * i, True)
                return multiply(acc, odd, 2 * i + 1, True)

            turns = (steps - 1) // 2
            acc, w = lax.fori_loop(0, turns, two, (_zeros(count), weights(0)))
            for position in range(2 * turns, steps):
                acc, w = multiply(acc, w, jnp.int32(position), position + 1 < steps)
            acc = plgpu.layout_cast(acc, plgpu.Layout.WGMMA)
            if split > 1:
                _store_part(acc, out_g, part, token, (tile * rows + group) * 64, m, outputs)
                return
            # The ring's x is free once every warpgroup is here: the result leaves through it.
            plgpu.barrier_arrive(done)
            plgpu.barrier_wait(done)
            result = plgpu.layout_cast(acc.astype(dtype), plgpu.Layout.WGMMA_TRANSPOSED)
            for g in range(rows):

                @pl.when(group == g)
                def _store(g=g):
                    exchange = x_of(g // 2, g % 2, count)
                    exchange.T[...] = result
                    plgpu.commit_smem()
                    columns = pl.ds((tile * rows + g) * 64, 64)
                    plgpu.copy_smem_to_gmem(exchange, out_g.at[part, pl.ds(token, count), columns])

            plgpu.wait_smem_to_gmem(0, wait_read_only=True)

        def fetch(tile, token, count: int):
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
                    source = x_g.at[pl.ds(token, count), columns]
                    plgpu.copy_gmem_to_smem(source, x_of(slot, half, count), full.at[slot])
                at = (number, pl.ds(tile * strips, strips), block)
                plgpu.copy_gmem_to_smem(words_g.at[at], ws.at[slot], full.at[slot])
                plgpu.copy_gmem_to_smem(meta_g.at[at], ms.at[slot], full.at[slot])

        @pl.when(group < rows)
        def _compute():
            plgpu.set_max_registers(_REGISTERS[rows], action="increase")
            work(compute)

        @pl.when(group == rows)
        def _memory():
            plgpu.set_max_registers(24, action="decrease")
            work(fetch)

    body.__name__ = f"int4_matmul_wgmma_{m}x{x_shape[1]}x{outputs}"
    return jax.jit(
        plgpu.kernel(
            body,
            out_type=jax.ShapeDtypeStruct((split, m, outputs), out_dtype),
            scratch_types={
                "xs": plgpu.SMEM((stages, 2, tokens, 64), dtype, transforms=_SWIZZLED),
                "ws": plgpu.SMEM((stages, strips, STRIP * BLOCK // 8), jnp.int32),
                "ms": plgpu.SMEM((stages, strips, groups, STRIP), jnp.int32),
                "full": plgpu.Barrier(num_arrivals=4, num_barriers=stages),
                "empty": plgpu.Barrier(num_arrivals=rows, num_barriers=stages),
                "done": plgpu.Barrier(num_arrivals=rows),
            },
            grid=(sum(p.count for p in pieces), 1, 1) if config.tail else (output_tiles, m // tokens, split),
            grid_names=("outputs", "tokens", "part"),
            num_threads=rows + 1,
            thread_name="warpgroup",
            compiler_params=ptx.compiler_params(approx_math=True),
        )
    )


def _dequantize(words, meta, group, groups: int, dtype: str):
    """The running warpgroup's 64 x 128 weights in the layout of wgmma's A operand."""
    kind = ptx.SHORT_NAMES[dtype]

    @ptx.inline(
        plgpu.RefType(),
        plgpu.RefType(),
        plgpu.Layout.WG_SPLAT(()),
        returns=ptx.array_type((64, BLOCK), dtype, plgpu.Layout.WGMMA),
    )
    def emit(words, meta, group):
        group = ptx.scalar(group)
        thread = ptx.thread_index() % 128
        lane, strip = thread % 32, group * 4 + thread // 32
        source = ptx.shared_address(words) + strip * (STRIP * BLOCK // 2) + lane * 16
        loaded = ptx.load_shared(source, 4) + ptx.load_shared(source + 512, 4)
        scale_source = ptx.shared_address(meta) + strip * (groups * STRIP * 4) + (lane // 4) * 4
        registers = np.empty(plgpu.Layout.WGMMA.to_mgpu().registers_shape((64, BLOCK)), dtype=object)
        flat = registers.reshape(16, 2)  # [8 inputs, 8 outputs of the strip]
        pair_type = ir.VectorType.get((2,), utils.dtype_to_ir_type(jnp.dtype(dtype)))
        for part in range(groups):
            scales, zeros = [], []
            for half in range(2):
                [word] = ptx.load_shared(scale_source + (part * STRIP * 4 + half * 32))
                scales.append(ptx.round_pair(nibbles.scale(word), kind))
                zeros.append(nibbles.biased_pair((word & 0xF) * 0x10001, 0, kind))
            for s in range(part * 8 // groups, (part + 1) * 8 // groups):
                for i in range(4):
                    bits = nibbles.biased_pair(loaded[s], i, kind)
                    pair = ptx.pair_op("mul", ptx.pair_op("sub", bits, zeros[i % 2], kind), scales[i % 2], kind)
                    flat[2 * s + i // 2, i % 2] = utils.bitcast(pair.value, pair_type)
        return fa.FragmentedArray(_registers=registers, _layout=plgpu.Layout.WGMMA.to_mgpu(), _is_signed=None)

    return emit(words, meta, group)


def _zeros(tokens: int):
    """The accumulator [64, tokens] of a warpgroup."""

    @ptx.inline(returns=ptx.array_type((64, tokens), "float32", _ACCUMULATOR))
    def emit():
        return fa.FragmentedArray.splat(utils.c(0.0, ptx.f32()), (64, tokens), _ACCUMULATOR.to_mgpu())

    return emit()


def _multiply(acc, w, x_low, x_high, dtype: str):
    """Start ``acc + w @ x.T``, 64 inputs of x at a time: one commit group of eight wgmma.

    Until it is waited for, acc may not be touched.

    All eight are one piece of assembly. Written as eight, the compiler puts moves of operands between them, and ptxas then
    runs them one after the other (its message C7513).
    """
    tokens = acc.shape[1]
    kind = ptx.SHORT_NAMES[dtype]

    @ptx.inline(
        _ACCUMULATOR,
        plgpu.Layout.WGMMA,
        *(plgpu.RefType(_SWIZZLED),) * 2,
        returns=ptx.array_type((64, tokens), "float32", _ACCUMULATOR),
    )
    def emit(acc, w, *halves):
        descriptors = []
        for x in halves:
            (start, (_, (stride, *_))), _, fastest = mma_utils.create_descriptor(
                utils.memref_transpose(x, (1, 0, 3, 2)), swizzle=128, large_tile=(64, 64), group_size=(64, tokens),
                logical_k_major=True,
            )  # fmt: skip
            assert fastest == mma_utils.Dim.K
            descriptors.append(start)
        count = tokens // 2
        registers = [utils.bitcast(v, ptx.i32()) for v in w.registers.flat]
        names = ", ".join(f"${i}" for i in range(count))
        lines = ["{ .reg .b64 d;", "wgmma.fence.sync.aligned;"]
        for s in range(8):
            a = ", ".join(f"${2 * count + 4 * s + i}" for i in range(4))
            lines.append(f"add.s64 d, ${2 * count + 32 + s // 4}, {s % 4 * (stride >> 4)};")
            lines.append(
                f"wgmma.mma_async.sync.aligned.m64n{tokens}k16.f32.{kind}.{kind} {{{names}}}, {{{a}}}, d, 1, 1, 1, 0;"
            )
        lines += ["wgmma.commit_group.sync.aligned;", "}"]
        single = ir.VectorType.get((1,), ptx.f32())
        constraints = ["=f"] * count + [str(i) for i in range(count)] + ["r"] * 32 + ["l"] * 2
        result = llvm.inline_asm(
            llvm.StructType.get_literal([single] * count),
            [*acc.registers.flat, *registers, *descriptors],
            "\n".join(lines),
            ",".join(constraints),
            asm_dialect=0,
            has_side_effects=True,
        )
        new = np.empty(acc.registers.shape, dtype=object)
        new.flat = [llvm.extractvalue(single, result, [i]) for i in range(count)]
        return fa.FragmentedArray(_registers=new, _layout=acc.layout, _is_signed=None)

    return emit(acc, w, x_low, x_high)


def _store_part(result, out, part, token, row, m: int, outputs: int) -> None:
    """Write the running warpgroup's float32 [output, token] straight from registers: eight lanes fill a sector of 32 bytes."""
    tokens = result.shape[1]

    @ptx.inline(plgpu.Layout.WGMMA, plgpu.RefType(), *(plgpu.Layout.WG_SPLAT(()),) * 3)
    def emit(result, out, part, token, row):
        part, token, row = (ptx.scalar(v) for v in (part, token, row))
        thread = ptx.thread_index() % 128
        lane = thread % 32
        row = row + (thread // 32) * STRIP + lane // 4
        token = token + lane % 4 * 2
        start = ptx.global_address(out) + ((part * m + token).wide() * outputs + row.wide()) * 4
        pairs = result.registers.reshape(tokens // 8, 2)
        for half in range(2):
            with utils.when(row + 8 * half < outputs):
                for column in range(tokens // 8):
                    for j in range(2):
                        value = llvm.extractelement(pairs[column, half], utils.c(j, ptx.i32()))
                        address = start + ((column * 8 + j) * outputs + 8 * half) * 4
                        ptx.asm("st.global.f32 [$0], $1;", address, value)

    emit(result, out, part, token, row)
