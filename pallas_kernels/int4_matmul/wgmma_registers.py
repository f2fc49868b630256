"""What a warpgroup of the batched int4 matmul holds in registers: weights on their way to the tensor cores, and products."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.experimental.mosaic.gpu import fragmented_array as fa
from jax.experimental.mosaic.gpu import mma_utils, utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import llvm

from pallas_kernels import ptx
from pallas_kernels.int4_matmul import nibbles
from pallas_kernels.int4_matmul.tiles import BLOCK, STRIP

SWIZZLED: tuple[Any, ...] = (
    plgpu.TilingTransform((8, 64)),  # pyright: ignore[reportAbstractUsage]
    plgpu.SwizzleTransform(128),  # pyright: ignore[reportAbstractUsage]
)
"""How x lies in shared memory."""
ACCUMULATOR = plgpu.Layout._WGMMA_ACC_32BIT
REGISTERS = {1: 232, 2: 240, 3: 160, 4: 112}
"""Registers of a thread of so many computing warpgroups, what ``setmaxnreg`` can give beside a memory warpgroup of 24."""


def ring_bytes(rows: int, tokens: int, stages: int, groups_per_tile: int) -> int:
    """Shared memory of a block: ``stages`` times the tiles of 64 * ``rows`` outputs and x of ``tokens`` tokens, 128 inputs each."""
    weights = 4 * rows * (STRIP * BLOCK // 2 + groups_per_tile * STRIP * 4)
    return stages * (weights + tokens * BLOCK * 2) + 1024


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
