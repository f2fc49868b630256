"""The code of a warp: RoPE on columns that it holds, times 32 columns of a matrix, all operands straight from global memory.

``mma.m16n8k16`` computes ``out^T = matrix^T x^T``: 8 heads (columns) by 16 outputs. Which input is which k of the instruction, and
which output which row, is free as long as both operands agree. So thread (g, t) of a warp, g = lane // 4 and t = lane % 4, takes:

    x       of column g the inputs 32 c + 8 t .. + 7 for every chunk c: one load of 16 bytes, the B operand of two instructions.
            Input h + H/2 is in the same thread as h, so RoPE asks no other thread
    matrix  of those inputs the outputs 4 g .. 4 g + 3 of the warp's 32: loads of 8 bytes, 64 of a row side by side. Two bytewise
            permutations of two rows' words make the A operand, which wants neighbouring inputs in a word
    out     of columns 2 t and 2 t + 1 the outputs 4 g .. 4 g + 3: stores of 8 bytes
"""

from pallas_kernels import ptx, ptx_sync
from pallas_kernels.head_basis.tiles import OUTPUTS
from pallas_kernels.ptx import Int
from pallas_kernels.ptx_float import Float as Number
from pallas_kernels.ptx_float import permute, unpack_pair

_CHUNK = 32
"""Inputs that four threads load at once."""


def load_column(row: Int, t: Int, head_dim: int) -> list[list[Int]]:
    """This thread's four words of every chunk of a head."""
    return [ptx_sync.load_global_words(row + _at(t, chunk, 2), 4) for chunk in range(head_dim // _CHUNK)]


def load_angles(row: Int, t: Int, head_dim: int) -> list[list[Number]]:
    """Cosines or sines of this thread's pairs, for every chunk of the first half."""
    chunks = range(head_dim // _CHUNK // 2)
    return [
        [Number(ptx.as_float(word)) for half in (0, 16) for word in ptx_sync.load_global_words(place + half, 4)]
        for place in (row + _at(t, chunk, 4) for chunk in chunks)
    ]


def load_matrix(matrix: Int, g: Int, t: Int, strip: Int, head_dim: int) -> list[list[list[Int]]]:
    """Rows of the matrix, two words each, [chunk][input of the chunk's 8].

    Args:
        matrix: address, [H, H].
        g, t: the thread.
        strip: which 32 outputs.
        head_dim: H.
    """
    row_bytes = 2 * head_dim
    start = matrix + (t * (8 * row_bytes) + strip * (2 * OUTPUTS) + g * 8).wide()
    return [
        [ptx_sync.load_global_words(start + (_CHUNK * chunk + i) * row_bytes, 2) for i in range(8)]
        for chunk in range(head_dim // _CHUNK)
    ]


def turn(column: list[list[Int]], cos: list[list[Number]], sin: list[list[Number]], dtype: str) -> list[list[Int]]:
    """RoPE of a head, in float32, rounded to ``dtype`` (bf16 or f16)."""
    half = len(column) // 2
    firsts, seconds = [], []
    for chunk in range(half):
        a, b = (
            [v for word in words for v in unpack_pair(word, dtype)] for words in (column[chunk], column[chunk + half])
        )
        angles = list(zip(a, b, cos[chunk], sin[chunk], strict=True))
        firsts.append(_packed([x * c - y * s for x, y, c, s in angles], dtype))
        seconds.append(_packed([y * c + x * s for x, y, c, s in angles], dtype))
    return firsts + seconds


def multiply(columns: list[list[list[Int]]], rows: list[list[list[Int]]], dtype: str) -> list[list[list[Number]]]:
    """Product with 32 outputs of the matrix.

    Args:
        columns: as ``load_column`` or ``turn`` gives them, one for each 8 columns.
        rows: as ``load_matrix`` gives them.
        dtype: bf16 or f16.

    Returns:
        [8 columns][of columns 2 t and 2 t + 1][outputs 4 g .. 4 g + 3].
    """
    zero = Number(0.0).value
    totals = [[[zero] * 4 for _ in range(2)] for _ in columns]
    for chunk, chunk_rows in enumerate(rows):
        for step in range(2):
            four = chunk_rows[4 * step : 4 * step + 4]
            for pair in range(2):
                words = [row[pair] for row in four]
                # Inputs 0 and 1, then 2 and 3; of each the even output (row g of the instruction), then the odd (row g + 8).
                a = [permute(words[i], words[i + 1], half) for i in (0, 2) for half in (0x5410, 0x7632)]
                for total, column in zip(totals, columns, strict=True):
                    total[pair] = ptx.mma(a, column[chunk][2 * step : 2 * step + 2], total[pair], dtype)
    return [
        [[Number(total[pair][row + of_two]) for pair in range(2) for row in (0, 2)] for of_two in range(2)]
        for total in totals
    ]


def _at(t: Int, chunk: int, size: int) -> Int:
    """Offset in bytes of this thread's 8 values of a chunk, of ``size`` bytes each."""
    return (t * (8 * size) + _CHUNK * chunk * size).wide()


def _packed(values: list[Number], dtype: str) -> list[Int]:
    return [ptx.pack_pair(a.value, b.value, dtype) for a, b in zip(values[::2], values[1::2], strict=True)]
