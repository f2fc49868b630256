"""Float32 arithmetic of one thread, and the values that threads of a warp exchange; beside ``ptx``."""

from collections.abc import Sequence
from typing import Any

from jax.experimental.mosaic.gpu import utils
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith

from pallas_kernels import ptx
from pallas_kernels.ptx import Int


def _constant(value: float) -> ir.Value:
    constant: Any = utils.c(value, ptx.f32())
    return constant


class Float:
    """A float32 of the running thread with Python's operators."""

    __slots__ = ("value",)

    def __init__(self, value: "ir.Value | float"):
        self.value: Any = _constant(value) if isinstance(value, float) else value

    def _other(self, other: "Float | float") -> ir.Value:
        return other.value if isinstance(other, Float) else _constant(float(other))

    def __add__(self, other: "Float | float") -> "Float":
        return Float(arith.addf(self.value, self._other(other), fastmath=arith.FastMathFlags.contract))

    def __sub__(self, other: "Float | float") -> "Float":
        return Float(arith.subf(self.value, self._other(other), fastmath=arith.FastMathFlags.contract))

    def __mul__(self, other: "Float | float") -> "Float":
        return Float(arith.mulf(self.value, self._other(other), fastmath=arith.FastMathFlags.contract))

    def __gt__(self, other: "Float | float") -> ir.Value:
        return arith.cmpf(arith.CmpFPredicate.OGT, self.value, self._other(other))

    def fma(self, factor: "Float", addend: "Float") -> "Float":
        """``self * factor + addend``, one rounding."""
        return Float(ptx.fma(self.value, factor.value, addend.value))

    def max(self, other: "Float") -> "Float":
        """The larger of two; a NaN loses."""
        return Float(ptx.asm("max.f32 $0, $1, $2;", self.value, other.value, results=(ptx.f32(),), pure=True)[0])

    def min(self, other: "Float") -> "Float":
        """The smaller of two; a NaN loses."""
        return Float(ptx.asm("min.f32 $0, $1, $2;", self.value, other.value, results=(ptx.f32(),), pure=True)[0])

    def select(self, condition: ir.Value, otherwise: "Float | float") -> "Float":
        """This value where the condition holds."""
        return Float(arith.select(condition, self.value, self._other(otherwise)))

    def exp2(self) -> "Float":
        """2 to this power, within 2 units in the last place; subnormal results are 0."""
        return Float(ptx.asm("ex2.approx.ftz.f32 $0, $1;", self.value, results=(ptx.f32(),), pure=True)[0])

    def reciprocal(self) -> "Float":
        """1 / self, within 1 unit in the last place; 0 has infinity."""
        return Float(ptx.asm("rcp.approx.ftz.f32 $0, $1;", self.value, results=(ptx.f32(),), pure=True)[0])

    def rsqrt(self) -> "Float":
        """1 / sqrt(self), within 2 ** -22.9 of it."""
        return Float(ptx.asm("rsqrt.approx.f32 $0, $1;", self.value, results=(ptx.f32(),), pure=True)[0])

    def divide(self, other: "Float") -> "Float":
        """``self / other`` rounded to nearest, as IEEE 754 has it."""
        return Float(ptx.asm("div.rn.f32 $0, $1, $2;", self.value, other.value, results=(ptx.f32(),), pure=True)[0])

    def tanh(self) -> "Float":
        """By ``1 - 2 / (1 + exp(2 x))``: the instruction of that name keeps only 11 bits."""
        half = ((self * 2.885390081777927).exp2() + 1.0).reciprocal()  # 2 / ln 2
        return half.fma(Float(-2.0), Float(1.0))

    def from_lane(self, lane: Int | int) -> "Float":
        """The value that another thread of the warp holds."""
        return Float(_shuffle("idx", self.value, lane, ptx.f32()))

    def from_lane_xor(self, mask: int) -> "Float":
        """The value of the thread whose number differs in these bits."""
        return Float(_shuffle("bfly", self.value, mask, ptx.f32()))


def from_lane_xor_word(x: Int, mask: int) -> Int:
    """The word of the thread whose number differs in these bits."""
    return Int(_shuffle("bfly", x.value, mask, ptx.i32()))


def _shuffle(kind: str, x: ir.Value, lane: Int | int, result: ir.Type) -> ir.Value:
    operand = lane if isinstance(lane, Int) else ptx.constant(lane)
    text = f"shfl.sync.{kind}.b32 $0, $1, $2, 31, 0xffffffff;"
    return _collective(text, x, operand.value, result=result)


def _collective(text: str, *operands: ir.Value, result: ir.Type) -> ir.Value:
    """An instruction of the whole warp: the compiler must not move it into a branch."""
    return utils.inline_ptx(text, *operands, result_types=result, has_side_effects=True, convergent=True)


def scan_warp(x: Int, lane: Int) -> Int:
    """Sum over the lanes up to this one, itself included."""
    for distance in (1, 2, 4, 8, 16):
        text = "shfl.sync.up.b32 $0, $1, $2, 0, 0xffffffff;"
        other = Int(_collective(text, x.value, ptx.constant(distance).value, result=ptx.i32()))
        x = x + other.select(ptx.constant(distance - 1) < lane, 0)
    return x


def any_lane(condition: ir.Value) -> ir.Value:
    """Whether the condition holds in one thread of the warp at least."""
    return _collective("vote.sync.any.pred $0, $1, 0xffffffff;", condition, result=ir.IntegerType.get_signless(1))


def transpose_matrix(rows: Int) -> Int:
    """``movmatrix``: an 8 x 8 matrix of 16-bit values held two to a thread, row by row, comes back column by column."""
    text = "movmatrix.sync.aligned.m8n8.trans.b16 $0, $1;"
    return Int(_collective(text, rows.value, result=ptx.i32()))


def permute(a: Int, b: Int, selector: int) -> Int:
    """``prmt``: byte i of the result is byte ``selector >> 4 * i & 7`` of a (0..3) and b (4..7)."""
    return Int(ptx.asm(f"prmt.b32 $0, $1, $2, {selector:#x};", a, b, results=(ptx.i32(),), pure=True)[0])


def unpack_pair(word: Int, dtype: str) -> tuple[Float, Float]:
    """The two values of a word of bf16x2 or f16x2."""
    if dtype == "bf16":
        return Float(ptx.as_float(Int(arith.shli(word.value, utils.c(16, ptx.i32()))))), Float(
            ptx.as_float(word & -0x10000)
        )
    text = "{ .reg .b16 l, h; mov.b32 {l, h}, $2; cvt.f32.f16 $0, l; cvt.f32.f16 $1, h; }"
    low, high = ptx.asm(text, word, results=(ptx.f32(), ptx.f32()), pure=True)
    return Float(low), Float(high)


def pack_words(low: Float, high: Float, dtype: str) -> Int:
    """Two values rounded to ``dtype`` (bf16 or f16) in one word; beyond float16's range its largest value."""
    if dtype == "f16":
        limit = Float(65504.0)
        low, high = (v.min(limit).max(Float(-65504.0)) for v in (low, high))
    return ptx.pack_pair(low.value, high.value, dtype)


def word(bits: int) -> Int:
    """A constant of 32 bits, given unsigned."""
    return ptx.constant(bits - (1 << 32) if bits >> 31 else bits)


def to_half(x: Float, rounding: str) -> Int:
    """Bits of x as float16, the upper half 0; ``rounding`` is rn (nearest), rm (down) or rp (up)."""
    text = f"{{ .reg .b16 h; cvt.{rounding}.f16.f32 h, $1; mov.b32 $0, {{h, 0}}; }}"
    return Int(ptx.asm(text, x.value, results=(ptx.i32(),), pure=True)[0])


def from_half(bits: Int) -> Float:
    """The float16 in the lower half of a word."""
    return unpack_pair(bits, "f16")[0]


def to_integer(x: Float) -> Int:
    """The nearest integer of a number that isn't negative, halves to even."""
    return Int(ptx.asm("cvt.rni.u32.f32 $0, $1;", x.value, results=(ptx.i32(),), pure=True)[0])


def halves_fma(pair: Int, factor: int, addend: int) -> Int:
    """``pair * factor + addend`` of two float16 values; constants are words of two float16."""
    return halves_fma_words(pair, word(factor), word(addend))


def halves_fma_words(pair: Int, factor: Int, addend: Int) -> Int:
    """``pair * factor + addend`` of two float16 values each, one rounding."""
    text = "fma.rn.f16x2 $0, $1, $2, $3;"
    return Int(ptx.asm(text, pair, factor, addend, results=(ptx.i32(),), pure=True)[0])


def halves_add(pair: Int, addend: int) -> Int:
    """``pair + addend`` of two float16 values; the constant is a word of two float16."""
    return Int(ptx.asm("add.rn.f16x2 $0, $1, $2;", pair, word(addend), results=(ptx.i32(),), pure=True)[0])


def floats(values: Sequence[ir.Value]) -> list[Float]:
    """Each as a Float."""
    return [Float(v) for v in values]
