"""What becomes of a warpgroup's [output, token] in registers: parts of a sum, or the result, gated or not."""

from typing import Any

import numpy as np
from jax.experimental.mosaic.gpu import fragmented_array as fa
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm

from pallas_kernels import ptx, ptx_sync
from pallas_kernels.int4_matmul.tiles import STRIP
from pallas_kernels.int4_matmul.wgmma_registers import ACCUMULATOR
from pallas_kernels.ptx import Int
from pallas_kernels.ptx_float import from_lane_xor_word, transpose_matrix


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
            with ptx_sync.when(row + 8 * half < outputs):
                for column in range(tokens // 8):
                    for j in range(2):
                        value = llvm.extractelement(pairs[column, half], utils.c(j, ptx.i32()))
                        address = start + ((column * 8 + j) * outputs + 8 * half) * 4
                        ptx.asm("st.global.f32 [$0], $1;", address, value)

    emit(result, out, part, token, row)


def store_result(acc, out, token, row, m: int, outputs: int, dtype: str, *, gated: bool) -> None:
    """Write the running warpgroup's accumulator, rounded to ``dtype``, as tokens below ``m`` of out.

    Args:
        out: [m, outputs], or of ``gated`` outputs [m, outputs / 2].
        token, row: the first token and output of the warpgroup.
        outputs: of the matmul, a multiple of 64.
        gated: outputs are in turns of 8 of a gate and what it gates; ``silu(gate) * up`` is written.
    """
    write = write_gated if gated else write_product

    @ptx.inline(ACCUMULATOR, plgpu.RefType(), *(plgpu.Layout.WG_SPLAT(()),) * 2)
    def emit(acc, out, token, row):
        token, row = ptx.scalar(token), ptx.scalar(row)
        with ptx_sync.when(row < outputs):
            write(_values(acc), ptx.global_address(out), token, row, m, outputs, ptx.SHORT_NAMES[dtype])

    emit(acc, out, token, row)


def write_product(values: list, out: Int, token: Int, row: Int, m: int, outputs: int, kind: str) -> None:
    """One thread's part of ``store_result``: of every 8 tokens the values (r, c), (r, c + 1), (r + 8, c), (r + 8, c + 1).

    An 8 x 8 matrix of outputs and tokens is transposed in registers, and two of them, of outputs 0..7 and 8..15 of a warp's strip,
    are dealt so that the four threads of a token write one sector of 32 bytes.
    """
    thread = ptx.thread_index() % 128
    lane, warp = thread % 32, thread // 32
    t = lane % 4
    odd = ptx_sync.equal(t % 2, 1)
    first, column = token + lane // 4, row + warp * STRIP + (t * 2 + 6).select(odd, t * 2)
    address = out + (first.wide() * outputs + column.wide()) * 2
    for c in range(len(values) // 4):
        low, high = (transpose_matrix(ptx.pack_pair(values[i], values[i + 1], kind)) for i in (4 * c, 4 * c + 2))
        received = from_lane_xor_word(low.select(odd, high), 1)
        with ptx_sync.when(first + 8 * c < m):
            ptx_sync.store_global(address + 8 * c * outputs * 2, received.select(odd, low), high.select(odd, received))


def write_gated(values: list, out: Int, token: Int, row: Int, m: int, outputs: int, kind: str) -> None:
    """As ``write_product``: r is a gate's output and r + 8 what it gates, so that a thread has both."""
    thread = ptx.thread_index() % 128
    lane, warp = thread % 32, thread // 32
    first, column = token + lane // 4, (row + warp * STRIP) // 2 + lane % 4 * 2
    address = out + (first.wide() * (outputs // 2) + column.wide()) * 2
    for c in range(len(values) // 4):
        gates, ups = values[4 * c : 4 * c + 2], values[4 * c + 2 : 4 * c + 4]
        low, high = (arith.mulf(ptx.silu(gate), up) for gate, up in zip(gates, ups, strict=True))
        word = transpose_matrix(ptx.pack_pair(low, high, kind))
        with ptx_sync.when(first + 8 * c < m):
            ptx_sync.store_global(address + 8 * c * outputs, word)


def hand_over(acc, parts, flags, index) -> None:
    """Write the running warpgroup's accumulator as part ``index``, and raise its flag."""

    @ptx.inline(ACCUMULATOR, plgpu.RefType(), plgpu.RefType(), plgpu.Layout.WG_SPLAT(()))
    def emit(acc, parts, flags, index):
        index = ptx.scalar(index)
        address = _part_address(parts, index, acc.shape[1])
        values = _values(acc)
        for i in range(0, len(values), 4):
            ptx_sync.store_global(address + 512 * 4 * (i // 4), *values[i : i + 4])
        ptx_sync.fence_gpu()
        utils.warpgroup_barrier()
        with ptx_sync.when(ptx_sync.equal(ptx.thread_index() % 128, 0)):
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
        with ptx_sync.when(ptx_sync.equal(ptx.thread_index() % 128, 0)):
            ptx_sync.store_global(flag, ptx.constant(0))
        return fa.FragmentedArray(_registers=new, _layout=acc.layout, _is_signed=None)

    return emit(acc, parts, flags, index)


def _part_address(parts, index: Int, tokens: int) -> Int:
    """Of the running thread's first four values: a warpgroup's values lie four of each thread after the other."""
    thread = ptx.thread_index() % 128
    return ptx.global_address(parts) + index.wide() * (64 * tokens * 4) + thread.wide() * 16


def _values(acc) -> list[ir.Value]:
    """The running thread's values, one float32 each, in wgmma's order."""
    return [llvm.extractelement(v, utils.c(0, ptx.i32())) for v in acc.registers.flat]
