"""A thin layer over ``plgpu.inline_mgpu``: integer arithmetic and single PTX instructions, for code of one thread.

Pallas speaks of whole arrays held by a warpgroup. Where a kernel needs more (fragments of ``mma.sync``, copies that a warp does for
itself), its body is written per thread with these functions. Names and meanings are those of the PTX ISA manual. Shared memory
addresses are i32, global ones i64.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax.experimental.mosaic.gpu import utils
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, gpu, llvm, scf

SHORT_NAMES = {"bfloat16": "bf16", "float16": "f16"}
"""PTX's names of the 16-bit floats."""


def compiler_params(*, approx_math: bool = False) -> plgpu.CompilerParams:
    """For kernels whose bodies speak of single threads (Lane) and place their barriers themselves."""
    return plgpu.CompilerParams(
        approx_math=approx_math,
        unsafe_no_auto_barriers=True,
        lowering_semantics=plgpu.LoweringSemantics.Lane,
    )


def inline(*arguments: Any, returns: Any = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of a function that emits code: ``plgpu.inline_mgpu`` without its context argument.

    Args:
        arguments: layout of each array argument, ``plgpu.RefType`` of each reference.
        returns: ``array_type`` of what it returns, a FragmentedArray; None for nothing.
    """

    def decorate(emit: Callable[..., Any]) -> Callable[..., Any]:
        wrap: Any = plgpu.inline_mgpu(arg_types=arguments, return_type=returns)
        return wrap(lambda context, *values: emit(*values))

    return decorate


def array_type(shape: tuple[int, ...], dtype: Any, layout: Any) -> Any:
    """Shape, dtype and layout of an array in registers."""
    return plgpu.ShapeDtypeStruct(shape, jnp.dtype(dtype), layout=layout)


def i32() -> ir.Type:
    """The type of integers and of shared memory addresses."""
    return ir.IntegerType.get_signless(32)


def i64() -> ir.Type:
    """The type of global addresses."""
    return ir.IntegerType.get_signless(64)


def f32() -> ir.Type:
    """The type of accumulators."""
    return ir.F32Type.get()


class Int:
    """An integer of the running thread with Python's operators; both sides of an operator are of one width."""

    __slots__ = ("value",)

    def __init__(self, value: ir.Value):
        self.value = value

    def _other(self, other: "Int | int") -> ir.Value:
        return other.value if isinstance(other, Int) else utils.c(other, self.value.type)

    def __add__(self, other: "Int | int") -> "Int":
        return Int(arith.addi(self.value, self._other(other)))

    def __sub__(self, other: "Int | int") -> "Int":
        return Int(arith.subi(self.value, self._other(other)))

    def __mul__(self, other: "Int | int") -> "Int":
        return Int(arith.muli(self.value, self._other(other)))

    def __floordiv__(self, other: "Int | int") -> "Int":
        return Int(arith.divui(self.value, self._other(other)))

    def __mod__(self, other: "Int | int") -> "Int":
        return Int(arith.remui(self.value, self._other(other)))

    def __and__(self, other: "Int | int") -> "Int":
        return Int(arith.andi(self.value, self._other(other)))

    def __xor__(self, other: "Int | int") -> "Int":
        return Int(arith.xori(self.value, self._other(other)))

    def __rshift__(self, other: "Int | int") -> "Int":
        return Int(arith.shrui(self.value, self._other(other)))

    def __lt__(self, other: "Int | int") -> ir.Value:
        return arith.cmpi(arith.CmpIPredicate.ult, self.value, self._other(other))

    def select(self, condition: ir.Value, otherwise: "Int | int") -> "Int":
        """This integer where the condition holds."""
        return Int(arith.select(condition, self.value, self._other(otherwise)))

    def wide(self) -> "Int":
        """As i64, zeros above."""
        return Int(arith.extui(i64(), self.value))


def constant(value: int) -> Int:
    """An i32."""
    return Int(utils.c(value, i32()))


def scalar(value: Any) -> Int:
    """The integer that all threads hold, as ``inline`` passes it."""
    return Int(value.registers.item())


def thread_index() -> Int:
    """Of the block: 0 to block size - 1."""
    return Int(arith.index_castui(i32(), gpu.thread_id(gpu.Dimension.x)))


def block_index() -> Int:
    """Of a grid of one axis."""
    return Int(arith.index_castui(i32(), gpu.block_id(gpu.Dimension.x)))


def global_address(ref: ir.Value) -> Int:
    """Of the first element of a GMEM reference."""
    return Int(llvm.ptrtoint(i64(), utils.memref_ptr(ref)))


def shared_address(ref: ir.Value) -> Int:
    """Of the first element of an SMEM reference."""
    return Int(llvm.ptrtoint(i32(), utils.memref_ptr(ref)))


def repeat(count: int | Int, carry: Sequence[Any], body: Callable[[Int, list[Any]], Sequence[Any]]) -> list[Any]:
    """``for i in range(count): carry = body(i, carry)``; the carry is a list of values and Ints."""
    bound = count if isinstance(count, Int) else constant(count)
    ints = [isinstance(c, Int) for c in carry]

    def wrap(values):
        return [Int(v) if is_int else v for v, is_int in zip(values, ints, strict=True)]

    def unwrap(values):
        return [v.value if isinstance(v, Int) else v for v in values]

    loop = scf.ForOp(utils.c(0, i32()), bound.value, utils.c(1, i32()), unwrap(carry))
    with ir.InsertionPoint(loop.body):
        new = body(Int(loop.induction_variable), wrap(list(loop.inner_iter_args)))
        scf.YieldOp(unwrap(new))
    return wrap(list(loop.results))


def asm(text: str, *operands: Any, results: Sequence[ir.Type] = (), pure: bool = False) -> Any:
    """One PTX instruction; ``pure`` lets the compiler move, merge or drop it."""
    values = [o.value if isinstance(o, Int) else o for o in operands]
    if not results:
        utils.inline_ptx(text, *values, has_side_effects=True)
        return None
    return utils.inline_ptx(text, *values, result_types=tuple(results), has_side_effects=not pure)


def load_global(address: Int) -> Int:
    """One 32-bit word that no kernel writes while this one runs."""
    return Int(asm("ld.global.nc.u32 $0, [$1];", address, results=(i32(),))[0])


def copy_async(shared: Int, address: Int, size: Int | None = None) -> None:
    """16 bytes from global to shared memory past L1, part of this thread's open group.

    Of them ``size`` (0 or 16) are read, the rest are zeros; None reads all.
    """
    if size is None:
        asm("cp.async.cg.shared.global [$0], [$1], 16;", shared, address)
    else:
        asm("cp.async.cg.shared.global [$0], [$1], 16, $2;", shared, address, size)


def commit_group() -> None:
    """Close this thread's group of copies."""
    asm("cp.async.commit_group;")


def wait_group(pending: int) -> None:
    """Until at most ``pending`` groups of this thread's copies are under way."""
    asm(f"cp.async.wait_group {pending};")


def sync_warp() -> None:
    """All 32 threads of the warp; orders their shared memory accesses."""
    asm("bar.warp.sync 0xffffffff;")


def sync_block() -> None:
    """All threads of the block."""
    asm("bar.sync 0;")


def load_shared(address: Int, words: int = 1) -> list[Int]:
    """1, 2 or 4 words of 32 bits."""
    if words == 1:
        return [Int(asm("ld.shared.u32 $0, [$1];", address, results=(i32(),))[0])]
    names = ", ".join(f"${i}" for i in range(words))
    text = f"ld.shared.v{words}.u32 {{{names}}}, [${words}];"
    return [Int(v) for v in asm(text, address, results=(i32(),) * words)]


def store_shared(address: Int, *words: Any) -> None:
    """1, 2 or 4 words of 32 bits (integers or floats)."""
    if len(words) == 1:
        asm("st.shared.b32 [$0], $1;", address, words[0])
        return
    names = ", ".join(f"${i + 1}" for i in range(len(words)))
    asm(f"st.shared.v{len(words)}.b32 [$0], {{{names}}};", address, *words)


def load_matrices(address: Int) -> list[Int]:
    """``ldmatrix.x4``: four 8 x 8 matrices of 16 bits; thread i names row i % 8 of matrix i // 8, 16 bytes."""
    text = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {$0, $1, $2, $3}, [$4];"
    return [Int(v) for v in asm(text, address, results=(i32(),) * 4)]


def and_or(a: Int, mask: int, bits: int) -> Int:
    """``(a & mask) | bits`` in one instruction."""
    text = f"lop3.b32 $0, $1, {mask:#x}, {bits:#x}, 0xea;"
    return Int(asm(text, a, results=(i32(),), pure=True)[0])


def mma(a: Sequence[Int], b: Sequence[Int], c: Sequence[ir.Value], dtype: str) -> list[ir.Value]:
    """``mma.m16n8k16``: c + a @ b, float32; a of 4 words, b of 2, ``dtype`` bf16 or f16."""
    text = (
        f"mma.sync.aligned.m16n8k16.row.col.f32.{dtype}.{dtype}.f32 "
        "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
    )
    return list(asm(text, *a, *b, *c, results=(f32(),) * 4, pure=True))


def fma(a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """``a * b + c``, float32, one rounding."""
    return asm("fma.rn.f32 $0, $1, $2, $3;", a, b, c, results=(f32(),), pure=True)[0]


def as_float(bits: Int) -> ir.Value:
    """The float32 of these bits."""
    return arith.bitcast(f32(), bits.value)


def pack_pair(low: ir.Value, high: ir.Value, dtype: str) -> Int:
    """Two float32 rounded to ``dtype`` (bf16x2 or f16x2) in one word."""
    return Int(asm(f"cvt.rn.{dtype}x2.f32 $0, $1, $2;", high, low, results=(i32(),), pure=True)[0])


def round_pair(value: ir.Value, dtype: str) -> Int:
    """One float32 rounded to ``dtype``, in both halves of a word."""
    return pack_pair(value, value, dtype)


def pair_op(name: str, a: Int, b: Int, dtype: str) -> Int:
    """``add``, ``sub`` or ``mul`` of two pairs of 16-bit floats, rounded once; overflow is infinite."""
    return Int(asm(f"{name}.rn.{dtype}x2 $0, $1, $2;", a, b, results=(i32(),), pure=True)[0])


def silu(x: ir.Value) -> ir.Value:
    """``x / (1 + exp(-x))``, float32."""
    exponent = arith.mulf(x, utils.c(-math.log2(math.e), f32()))
    [power] = asm("ex2.approx.f32 $0, $1;", exponent, results=(f32(),), pure=True)
    below = arith.addf(power, utils.c(1.0, f32()))
    [inverse] = asm("rcp.approx.f32 $0, $1;", below, results=(f32(),), pure=True)
    return arith.mulf(x, inverse)
