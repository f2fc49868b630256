"""What threads of a block agree on: branches, memory barriers (``mbarrier``) and copies that report to them; beside ``ptx``."""

from collections.abc import Callable, Sequence
from typing import Any

from jax.experimental.mosaic.gpu import utils
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, scf

from pallas_kernels import ptx
from pallas_kernels.ptx import Int

BARRIER_BYTES = 8


def run_inline(emit: Callable[..., None], arg_types: Sequence[Any], *arguments: Any) -> None:
    """Emit per-thread code at this point of a Pallas kernel: ``emit(*values of the arguments)``."""
    ptx.inline(*arg_types)(emit)(*arguments)


when = utils.when
"""``with when(condition):`` emits code for the threads where the condition holds."""


def choose(condition: ir.Value, then: Callable[[], Sequence[ir.Value]], otherwise: Sequence[ir.Value]) -> list[Any]:
    """The values that ``then`` computes where the condition holds, the given ones elsewhere."""
    branch: Any = scf.IfOp(condition, [v.type for v in otherwise], has_else=True)
    for block, values in ((branch.then_block, then), (branch.else_block, lambda: otherwise)):
        with ir.InsertionPoint(block):
            scf.yield_(list(values()))
    return list(branch.results)


def both(a: ir.Value, b: ir.Value) -> ir.Value:
    """Of two conditions."""
    return arith.andi(a, b)


def either(a: ir.Value, b: ir.Value) -> ir.Value:
    """Of two conditions, or both."""
    return arith.ori(a, b)


def equal(a: Int, b: Int | int) -> ir.Value:
    """Whether two integers are."""
    other = b.value if isinstance(b, Int) else utils.c(b, a.value.type)
    return arith.cmpi(arith.CmpIPredicate.eq, a.value, other)


def minimum(a: Int, b: Int | int) -> Int:
    """Of two unsigned integers."""
    return a.select(a < b, b)


def ceil_div(a: Int, b: Int | int) -> Int:
    """``a / b`` rounded up; b is not 0."""
    return (a + b - 1) // b


def init_barrier(address: Int, arrivals: int) -> None:
    """A barrier whose phase ends after this many arrivals and all bytes that were announced."""
    ptx.asm(f"mbarrier.init.shared.b64 [$0], {arrivals};", address)


def publish_barriers() -> None:
    """Make barriers set up by this thread visible to the copy engine; a block-wide barrier must follow."""
    ptx.asm("fence.mbarrier_init.release.cluster;")
    ptx.asm("fence.proxy.async.shared::cta;")


def arrive(address: Int) -> None:
    """One arrival."""
    ptx.asm("mbarrier.arrive.shared.b64 _, [$0];", address)


def arrive_expecting(address: Int, size: Int | int) -> None:
    """One arrival that announces this many bytes of copies."""
    operand = size if isinstance(size, Int) else ptx.constant(size)
    ptx.asm("mbarrier.arrive.expect_tx.shared.b64 _, [$0], $1;", address, operand)


def wait(address: Int, parity: Int) -> None:
    """Until the phase of this parity has ended."""
    text = (
        "{ .reg .pred done; AGAIN_${:uid}: mbarrier.try_wait.parity.shared.b64 done, [$0], $1; "
        "@!done bra AGAIN_${:uid}; }"
    )
    utils.inline_ptx(text, address.value, parity.value, convergent=True)


def copy_bulk(shared: Int, address: Int, size: Int | int, barrier: Int) -> None:
    """Bytes from global to shared memory by the copy engine, announced to the barrier; all multiples of 16."""
    operand = size if isinstance(size, Int) else ptx.constant(size)
    text = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [$0], [$1], $2, [$3];"
    ptx.asm(text, shared, address, operand, barrier)


def load_global_words(address: Int, words: int) -> list[Int]:
    """2 or 4 words of 32 bits."""
    names = ", ".join(f"${i}" for i in range(words))
    return [
        Int(v)
        for v in ptx.asm(f"ld.global.v{words}.u32 {{{names}}}, [${words}];", address, results=(ptx.i32(),) * words)
    ]


def load_relaxed(address: Int, words: int, where: ir.Value) -> list[Int]:
    """2 or 4 words that any multiprocessor may have stored, past L1 and in the order of the code; zeros, and nothing is read, where
    the condition does not hold.
    """
    names = [f"${i}" for i in range(words)]
    zeros = " ".join(f"mov.b32 {name}, 0;" for name in names)
    load = f"@${words + 1} ld.relaxed.gpu.global.v{words}.u32 {{{', '.join(names)}}}, [${words}];"
    return [Int(v) for v in ptx.asm(f"{{ {zeros} {load} }}", address, where, results=(ptx.i32(),) * words)]


def store_global(address: Int, *words: Any) -> None:
    """1, 2 or 4 words of 32 bits (integers or floats)."""
    if len(words) == 1:
        ptx.asm("st.global.b32 [$0], $1;", address, words[0])
        return
    names = ", ".join(f"${i + 1}" for i in range(len(words)))
    ptx.asm(f"st.global.v{len(words)}.b32 [$0], {{{names}}};", address, *words)


def count_to(address: Int, last: Int) -> Int:
    """Count up a word in global memory that goes from ``last`` back to 0; returns what it was before.

    Acquire and release of the whole GPU: who finds ``last`` sees what all that counted before had stored.
    """
    text = "atom.acq_rel.gpu.global.inc.u32 $0, [$1], $2;"
    return Int(ptx.asm(text, address, last, results=(ptx.i32(),))[0])


def sync_warpgroup(barrier: Int) -> None:
    """The 128 threads that name the same hardware barrier, 1..15."""
    utils.inline_ptx("bar.sync $0, 128;", barrier.value, convergent=True)


def fence_gpu() -> None:
    """Order this thread's accesses to global memory before it and after it, for all threads of the GPU."""
    ptx.asm("fence.acq_rel.gpu;")


def wait_global(address: Int) -> None:
    """Until the word at this address is not 0; what was written before it was set (and fenced) can be read then."""
    text = (
        "{ .reg .pred unset; .reg .b32 word; AGAIN_${:uid}: ld.acquire.gpu.global.u32 word, [$0]; "
        "setp.eq.u32 unset, word, 0; @unset bra AGAIN_${:uid}; }"
    )
    utils.inline_ptx(text, address.value, convergent=True)
