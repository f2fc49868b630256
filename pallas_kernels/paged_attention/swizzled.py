"""Rows of a tiled array in shared memory, by threads of a warpgroup: 8 x 64 values of 16 bits, swizzle 128.

Where a row is no multiple of 64 values: 8 x 32, swizzle 64.
"""

from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import ptx, ptx_sync
from pallas_kernels.ptx import Int, constant, scalar

_TILING, _SWIZZLE = plgpu.TilingTransform, plgpu.SwizzleTransform
_CHUNK = 16


def _tile_bytes(width: int) -> int:
    """Of a row of a tile, rows of ``width`` values of 16 bits."""
    return 128 if width % 64 == 0 else 64


def transforms(width: int) -> tuple:
    """Of an array in shared memory whose rows have ``width`` values, a multiple of 32."""
    size = _tile_bytes(width)
    return _TILING((8, size // 2)), _SWIZZLE(size)  # pyright: ignore[reportAbstractUsage]


def address_of(base: Int, row: Int, chunk: Int, chunks: int) -> Int:
    """Where 16 bytes of a row lie, rows of ``chunks`` of them."""
    size = _tile_bytes(8 * chunks)
    across = size // _CHUNK
    tile = (row // 8) * (chunks // across) + chunk // across
    within = row % 8
    # The hardware's pattern takes its bits from 128 bytes on: two rows of 64 share theirs.
    pattern = within if size == 128 else within // 2
    return base + tile * (8 * size) + within * size + ((chunk % across) ^ pattern) * _CHUNK


def _thread() -> Int:
    """Of the warpgroup. Read anew: else addresses of a kernel's start are kept in registers for its end."""
    return Int(ptx.asm("mov.u32 $0, %tid.x;", results=(ptx.i32(),))[0]) % 128


def load_rows(q_ref, smem, part, begin, end, head) -> None:
    """Read ``q_ref[begin:end, head]`` into ``smem[part]`` [R, H], zeros past the end, seen by the tensor cores.

    TMA could not: its tiles of 8 rows must start at a multiple of 8.
    """
    _, rows, width = smem.shape
    heads, chunks = q_ref.shape[1], width // 8

    def emit(q, smem, *scalars):
        part, begin, end, head = (scalar(s) for s in scalars)
        base = ptx.shared_address(smem) + part * (rows * width * 2)
        thread, q = _thread(), ptx.global_address(q)
        for start in range(0, rows * chunks, 128):
            index = thread + start
            row, chunk = index // chunks, index % chunks
            inside = (begin + row) < end
            source = (ptx_sync.minimum(begin + row, end - 1) * heads + head).wide() * (2 * width)
            words = ptx_sync.load_global_words(q + source + chunk.wide() * _CHUNK, 4)
            ptx.store_shared(address_of(base, row, chunk, chunks), *[w.select(inside, 0) for w in words])

    types = plgpu.RefType(), plgpu.RefType(transforms(width)), *[plgpu.Layout.WG_SPLAT(())] * 4
    ptx_sync.run_inline(emit, types, q_ref, smem, part, begin, end, head)
    plgpu.commit_smem()


def store_rows(smem, out_ref, part, begin, end, head) -> None:
    """Write rows of ``smem[part]`` [R, H] to ``out_ref[begin:end, head]``, as many as there are."""
    _, rows, width = smem.shape
    heads = out_ref.shape[1]
    chunks = width // 8

    def emit(smem, out, *scalars):
        part, begin, end, head = (scalar(s) for s in scalars)
        base = ptx.shared_address(smem) + part * (rows * width * 2)
        thread, out = _thread(), ptx.global_address(out)
        for start in range(0, rows * chunks, 128):
            index = thread + start
            row, chunk = index // chunks, index % chunks
            with ptx_sync.when((begin + row) < end):
                words = ptx.load_shared(address_of(base, row, chunk, chunks), 4)
                target = ((begin + row) * heads + head).wide() * (2 * width) + chunk.wide() * _CHUNK
                ptx_sync.store_global(out + target, *words)

    types = plgpu.RefType(transforms(width)), plgpu.RefType(), *[plgpu.Layout.WG_SPLAT(())] * 4
    ptx_sync.run_inline(emit, types, smem, out_ref, part, begin, end, head)


def clear_rows(smem, part, first) -> None:
    """Set the rows of ``smem[part]`` [R, H], R <= 128, from ``first`` on to 0, seen by the tensor cores."""
    _, rows, width = smem.shape

    def emit(smem, *scalars):
        part, first = (scalar(s) for s in scalars)
        row = _thread()
        base = ptx.shared_address(smem) + part * (rows * width * 2)
        with ptx_sync.when(ptx_sync.both((first - 1) < row, row < rows)):
            for chunk in range(width // 8):
                ptx.store_shared(address_of(base, row, constant(chunk), width // 8), *[constant(0)] * 4)

    types = plgpu.RefType(transforms(width)), *[plgpu.Layout.WG_SPLAT(())] * 2
    ptx_sync.run_inline(emit, types, smem, part, first)
    plgpu.commit_smem()
