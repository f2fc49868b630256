"""What a warpgroup of the batched int4 matmul holds in registers: weights on their way to the tensor cores, and products."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.experimental.mosaic.gpu import fragmented_array as fa
from jax.experimental.mosaic.gpu import mma_utils, utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm

from pallas_kernels import ptx, ptx_sync
from pallas_kernels.int4_matmul import nibbles
from pallas_kernels.int4_matmul.tiles import BLOCK, STRIP
from pallas_kernels.ptx_float import from_lane_xor_word, transpose_matrix

SWIZZLED: tuple[Any, ...] = (
    plgpu.TilingTransform((8, 64)),  # pyright: ignore[reportAbstractUsage]
    plgpu.SwizzleTransform(128),  # pyright: ignore[reportAbstractUsage]
)
"""How x lies in shared memory."""
ACCUMULATOR = plgpu.Layout._WGMMA_ACC_32BIT


def dequantized(words, meta, group, groups: int, dtype: str, half: int | None = None):
    """The running warpgroup's 64 x 128 weights in the layout of wgmma's A operand; or half 0 or 1 of their inputs."""
    kind = ptx.SHORT_NAMES[dtype]
    halves = (0, 1) if half is None else (half,)
    shape = (64, 64 * len(halves))

    @ptx.inline(
        plgpu.RefType(),
        plgpu.RefType(),
        plgpu.Layout.WG_SPLAT(()),
        returns=ptx.array_type(shape, dtype, plgpu.Layout.WGMMA),
    )
    def emit(words, meta, group):
        pair_type = ir.VectorType.get((2,), utils.dtype_to_ir_type(jnp.dtype(dtype)))
        pairs = weight_pairs(
            ptx.shared_address(words), ptx.shared_address(meta), ptx.scalar(group), groups, kind, halves
        )
        registers: Any = np.empty(plgpu.Layout.WGMMA.to_mgpu().registers_shape(shape), dtype=object)
        registers.flat = [utils.bitcast(pair.value, pair_type) for pair in pairs]
        return fa.FragmentedArray(_registers=registers, _layout=plgpu.Layout.WGMMA.to_mgpu(), _is_signed=None)

    return emit(words, meta, group)


def weight_pairs(
    words: ptx.Int, meta: ptx.Int, group: ptx.Int, groups: int, kind: str, halves: tuple[int, ...]
) -> list[ptx.Int]:
    """One thread's weights, two to a word: of 8 inputs after the other, those of its two outputs (r and r + 8 of ``tiles``).

    Args:
        words, meta: shared memory addresses of the tiles of a block of inputs.
        group: the running warpgroup's number; it has four strips.
        groups: scales of an output in a tile.
        kind: bf16 or f16.
        halves: which of the two times 64 inputs.
    """
    thread = ptx.thread_index() % 128
    lane, strip = thread % 32, group * 4 + thread // 32
    source = words + strip * (STRIP * BLOCK // 2) + lane * 16
    loaded = {4 * h + i: word for h in halves for i, word in enumerate(ptx.load_shared(source + 512 * h, 4))}
    scale_source = meta + strip * (groups * STRIP * 4) + (lane // 4) * 4
    pairs = []
    for part in range(groups):
        steps = [s for s in range(part * 8 // groups, (part + 1) * 8 // groups) if s in loaded]
        if not steps:
            continue
        scales, zeros = [], []
        for row in range(2):
            [word] = ptx.load_shared(scale_source + (part * STRIP * 4 + row * 32))
            scales.append(ptx.round_pair(nibbles.scale(word), kind))
            zeros.append(nibbles.biased_pair((word & 0xF) * 0x10001, 0, kind))
        for s in steps:
            for i in range(4):
                bits = nibbles.biased_pair(loaded[s], i, kind)
                exact = ptx.pair_op("sub", bits, zeros[i % 2], kind)
                pairs.append(ptx.pair_op("mul", exact, scales[i % 2], kind))
    return pairs


def zeros(tokens: int):
    """The accumulator [64, tokens] of a warpgroup."""

    @ptx.inline(returns=ptx.array_type((64, tokens), "float32", ACCUMULATOR))
    def emit():
        return fa.FragmentedArray.splat(utils.c(0.0, ptx.f32()), (64, tokens), ACCUMULATOR.to_mgpu())

    return emit()


def multiplied(acc, w, xs: list, dtype: str):
    """Start ``acc + w @ x.T``, 64 inputs of x at a time: one commit group of four wgmma for each of ``xs``.

    Until it is waited for, acc may be touched by another such product alone.

    All are one piece of assembly. Written one by one, the compiler puts moves of operands between them, and ptxas then
    runs them one after the other (its message C7513).
    """
    tokens = acc.shape[1]
    kind = ptx.SHORT_NAMES[dtype]
    steps = 4 * len(xs)

    @ptx.inline(
        ACCUMULATOR,
        plgpu.Layout.WGMMA,
        *(plgpu.RefType(SWIZZLED),) * len(xs),
        returns=ptx.array_type((64, tokens), "float32", ACCUMULATOR),
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
        for s in range(steps):
            a = ", ".join(f"${2 * count + 4 * s + i}" for i in range(4))
            lines.append(f"add.s64 d, ${2 * count + 4 * steps + s // 4}, {s % 4 * (stride >> 4)};")
            lines.append(
                f"wgmma.mma_async.sync.aligned.m64n{tokens}k16.f32.{kind}.{kind} {{{names}}}, {{{a}}}, d, 1, 1, 1, 0;"
            )
        lines += ["wgmma.commit_group.sync.aligned;", "}"]
        single = ir.VectorType.get((1,), ptx.f32())
        constraints = ["=f"] * count + [str(i) for i in range(count)] + ["r"] * (4 * steps) + ["l"] * len(xs)
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

    return emit(acc, w, *xs)


def store_part(result, out, part, token, row, m: int, outputs: int) -> None:
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


def store_product(acc, out, token, row, m: int, outputs: int, dtype: str) -> None:
    """Write the running warpgroup's [output, token], rounded to ``dtype``, as tokens below ``m`` of out [m, outputs].

    An 8 x 8 matrix of outputs and tokens is transposed in registers, and two of them, of outputs 0..7 and 8..15 of a warp's strip,
    are dealt so that the four threads of a token write one sector of 32 bytes. ``outputs`` is a multiple of 64.
    """
    kind = ptx.SHORT_NAMES[dtype]

    @ptx.inline(ACCUMULATOR, plgpu.RefType(), *(plgpu.Layout.WG_SPLAT(()),) * 2)
    def emit(acc, out, token, row):
        token, row = ptx.scalar(token), ptx.scalar(row)
        thread = ptx.thread_index() % 128
        lane, warp = thread % 32, thread // 32
        g, t = lane // 4, lane % 4
        odd = ptx_sync.equal(t % 2, 1)
        column = row + warp * STRIP + (t * 2 + 6).select(odd, t * 2)
        first = token + g
        address = ptx.global_address(out) + (first.wide() * outputs + column.wide()) * 2
        values = [llvm.extractelement(v, utils.c(0, ptx.i32())) for v in acc.registers.flat]
        inside = row < outputs
        for c in range(acc.shape[1] // 8):
            low, high = (
                transpose_matrix(ptx.pack_pair(values[4 * c + 2 * half], values[4 * c + 2 * half + 1], kind))
                for half in range(2)
            )
            received = from_lane_xor_word(low.select(odd, high), 1)
            with utils.when(ptx_sync.both(inside, first + 8 * c < m)):
                ptx_sync.store_global(
                    address + 8 * c * outputs * 2, received.select(odd, low), high.select(odd, received)
                )

    emit(acc, out, token, row)


def store_gated(acc, out, token, row, m: int, outputs: int, dtype: str) -> None:
    """As ``store_product``, of outputs in turns of 8: ``silu(gate) * up``, in out [m, outputs / 2].

    Of a warp's strip a thread holds output r of a gate and r + 8, which that gates.
    """
    kind = ptx.SHORT_NAMES[dtype]

    @ptx.inline(ACCUMULATOR, plgpu.RefType(), *(plgpu.Layout.WG_SPLAT(()),) * 2)
    def emit(acc, out, token, row):
        token, row = ptx.scalar(token), ptx.scalar(row)
        thread = ptx.thread_index() % 128
        lane, warp = thread % 32, thread // 32
        first, column = token + lane // 4, (row + warp * STRIP) // 2 + lane % 4 * 2
        address = ptx.global_address(out) + (first.wide() * (outputs // 2) + column.wide()) * 2
        values = [llvm.extractelement(v, utils.c(0, ptx.i32())) for v in acc.registers.flat]
        inside = row < outputs
        for c in range(acc.shape[1] // 8):
            gates, ups = values[4 * c : 4 * c + 2], values[4 * c + 2 : 4 * c + 4]
            pair = [arith.mulf(ptx.silu(gate), up) for gate, up in zip(gates, ups, strict=True)]
            word = transpose_matrix(ptx.pack_pair(pair[0], pair[1], kind))
            with utils.when(ptx_sync.both(inside, first + 8 * c < m)):
                ptx_sync.store_global(address + 8 * c * outputs, word)

    emit(acc, out, token, row)


def hand_over(acc, parts, flags, index) -> None:
    """Write the running warpgroup's accumulator as part ``index``, and raise its flag."""

    @ptx.inline(ACCUMULATOR, plgpu.RefType(), plgpu.RefType(), plgpu.Layout.WG_SPLAT(()))
    def emit(acc, parts, flags, index):
        index = ptx.scalar(index)
        address = _part_address(parts, index, acc.shape[1])
        values = [llvm.extractelement(v, utils.c(0, ptx.i32())) for v in acc.registers.flat]
        for i in range(0, len(values), 4):
            ptx_sync.store_global(address + 512 * 4 * (i // 4), *values[i : i + 4])
        ptx_sync.fence_gpu()
        utils.warpgroup_barrier()
        with utils.when(ptx_sync.equal(ptx.thread_index() % 128, 0)):
            ptx_sync.store_global(ptx.global_address(flags) + index.wide() * 4, ptx.constant(1))

    emit(acc, parts, flags, index)


def take_over(acc, parts, flags, index):
    """``acc`` and part ``index``, once its flag is raised, which is taken down again."""
    tokens = acc.shape[1]

    @ptx.inline(
        ACCUMULATOR,
        plgpu.RefType(),
        plgpu.RefType(),
        plgpu.Layout.WG_SPLAT(()),
        returns=ptx.array_type((64, tokens), "float32", ACCUMULATOR),
    )
    def emit(acc, parts, flags, index):
        index = ptx.scalar(index)
        flag = ptx.global_address(flags) + index.wide() * 4
        ptx_sync.wait_global(flag)
        address = _part_address(parts, index, tokens)
        single = ir.VectorType.get((1,), ptx.f32())
        new: Any = np.empty(acc.registers.shape, dtype=object)
        added = []
        for i in range(0, len(acc.registers.flat), 4):
            words = ptx_sync.load_global_words(address + 512 * 4 * (i // 4), 4)
            for value, word in zip(list(acc.registers.flat)[i : i + 4], words, strict=True):
                added.append(arith.addf(value, utils.bitcast(word.value, single)))
        new.flat = added
        utils.warpgroup_barrier()
        with utils.when(ptx_sync.equal(ptx.thread_index() % 128, 0)):
            ptx_sync.store_global(flag, ptx.constant(0))
        return fa.FragmentedArray(_registers=new, _layout=acc.layout, _is_signed=None)

    return emit(acc, parts, flags, index)


def _part_address(parts, index: ptx.Int, tokens: int) -> ptx.Int:
    """Of the running thread's first four values: a warpgroup's values lie four of each thread after the other."""
    thread = ptx.thread_index() % 128
    return ptx.global_address(parts) + index.wide() * (64 * tokens * 4) + thread.wide() * 16
