"""Numbers out of the words of a tile (``tiles``), by code of one thread."""

from jaxlib.mlir import ir

from pallas_kernels import ptx
from pallas_kernels.ptx import Int

PAIR = 0x000F000F
"""The two nibbles of a word that make register 0 of an mma operand."""
MAGIC = {"bf16": 0x43004300, "f16": 0x64006400}
"""With q in the low bits of the mantissa: 128 + q as bfloat16, 1024 + q as float16, twice."""
BIAS = {"bf16": 128.0, "f16": 1024.0}
"""What MAGIC adds to q."""


def biased_pair(word: Int, register: int, dtype: str) -> Int:
    """The two weights of a register 0..3 of the operand, as ``BIAS + q``."""
    return ptx.and_or(word >> (4 * register) if register else word, PAIR, MAGIC[dtype])


def scale(meta: Int) -> ir.Value:
    """Of a word of meta, float32."""
    return ptx.as_float(meta & 0xFFFFFFF0)
