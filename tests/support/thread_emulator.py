"""Per-thread GPU code on a CPU: the threads of a block in lockstep, each value a numpy array with one element a thread.

``Threads(monkeypatch, memory)`` puts numpy behind ``pallas_kernels.ptx`` and its companions, so that code written with them runs
where it is called instead of emitting instructions. Instructions are those that the kernels use; their meaning is that
of the PTX ISA manual. Lockstep means that barriers have nothing to do: what a missing one would break, this does not show.
"""

import contextlib
import re
import sys
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import config as jaxtyping_config

from pallas_kernels import ptx, ptx_float, ptx_sync
from pallas_kernels.ptx import Int

THREADS = 128
_HALF = {"bf16": ml_dtypes.bfloat16, "f16": np.float16}
_BITS = {"i1": np.bool_, "i32": np.uint32, "i64": np.uint64, "f32": np.float32}


class Value(np.ndarray):
    """One element a thread; ``type`` is what the code asks of an MLIR value."""

    @property
    def type(self) -> str:
        return next(name for name, dtype in _BITS.items() if self.dtype == dtype)


def value(array, dtype=None) -> Value:
    return np.broadcast_to(np.asarray(array, dtype), (THREADS,)).copy().view(Value)


def _constant(number, kind: str) -> Value:
    if kind == "f32":
        return value(number, np.float32)
    return value(int(number) & (0xFFFFFFFF if kind == "i32" else 0xFFFFFFFFFFFFFFFF), _BITS[kind])


def _quiet(operation):
    """Threads that are masked off compute with whatever they find."""

    def run(*arguments, **options):
        with np.errstate(all="ignore"):
            return operation(*arguments, **options)

    return run


_ARITH = SimpleNamespace(
    addi=lambda a, b: value(a + b),
    subi=lambda a, b: value(a - b),
    muli=lambda a, b: value(a * b),
    divui=_quiet(lambda a, b: value(a // b)),
    remui=_quiet(lambda a, b: value(a % b)),
    andi=lambda a, b: value(a & b),
    ori=lambda a, b: value(a | b),
    xori=lambda a, b: value(a ^ b),
    shrui=lambda a, b: value(a >> b),
    shli=lambda a, b: value(a << b),
    select=lambda c, a, b: value(np.where(c, a, b)),
    extui=lambda kind, a: value(a.astype(_BITS[kind])),
    bitcast=lambda kind, a: value(np.asarray(a).view(_BITS[kind])),
    cmpi=lambda how, a, b: value(a < b if how == "ult" else a == b),
    cmpf=lambda how, a, b: value(a > b),
    addf=_quiet(lambda a, b, fastmath=None: value(a + b)),
    subf=_quiet(lambda a, b, fastmath=None: value(a - b)),
    mulf=_quiet(lambda a, b, fastmath=None: value(a * b)),
    CmpIPredicate=SimpleNamespace(ult="ult", eq="eq"),
    CmpFPredicate=SimpleNamespace(OGT="ogt"),
    FastMathFlags=SimpleNamespace(contract=None),
)


class Ref(SimpleNamespace):
    """What stands for a reference: its address and, where code asks, its shape."""


class Threads:
    """The threads of a block, a warpgroup unless told, and one memory for global and shared addresses."""

    def __init__(self, monkeypatch, size: int, threads: int = THREADS):
        monkeypatch.setattr(sys.modules[__name__], "THREADS", threads)
        self.memory = np.full(size, 0xA5, np.uint8)
        self.masks: list[Any] = []
        self.free = 0
        monkeypatch.setattr(jaxtyping_config, "jaxtyping_disable", True)
        for module in (ptx, ptx_float, ptx_sync):
            monkeypatch.setattr(module, "arith", _ARITH, raising=False)
            monkeypatch.setattr(module, "utils", SimpleNamespace(c=_constant), raising=False)
        signless = SimpleNamespace(get_signless=lambda bits: f"i{bits}")
        monkeypatch.setattr(ptx_float, "ir", SimpleNamespace(IntegerType=signless))
        for name in ("i32", "i64", "f32"):
            monkeypatch.setattr(ptx, name, lambda name=name: name)
        monkeypatch.setattr(ptx, "asm", _quiet(self.asm))
        monkeypatch.setattr(ptx, "thread_index", lambda: Int(value(np.arange(THREADS), np.uint32)))
        monkeypatch.setattr(ptx, "shared_address", lambda ref: Int(value(ref.address, np.uint32)))
        monkeypatch.setattr(ptx, "global_address", lambda ref: Int(value(ref.address, np.uint64)))
        monkeypatch.setattr(ptx, "repeat", self.repeat)
        monkeypatch.setattr(ptx_float, "_collective", self.collective)
        monkeypatch.setattr(ptx_sync, "when", self.when)
        monkeypatch.setattr(ptx_sync, "choose", self.choose)
        monkeypatch.setattr(ptx_sync, "copy_bulk", self.copy_bulk)
        monkeypatch.setattr(ptx_sync, "arrive_expecting", self.announce)
        self.announced = self.copied = 0
        monkeypatch.setattr(ptx_sync, "run_inline", lambda emit, types, *arguments: emit(*arguments))
        for name in ("sync_warpgroup", "wait", "arrive", "init_barrier"):
            monkeypatch.setattr(ptx_sync, name, lambda *arguments: None)

    def put(self, array: np.ndarray) -> Ref:
        """Into memory, at a multiple of 1024."""
        data = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        ref = Ref(address=self.free, shape=array.shape)
        self.memory[self.free : self.free + data.size] = data
        self.free += -(-data.size // 1024) * 1024
        assert self.free <= self.memory.size
        return ref

    def get(self, ref: Ref, dtype) -> np.ndarray:
        size = int(np.prod(ref.shape)) * np.dtype(dtype).itemsize
        return self.memory[ref.address : ref.address + size].view(dtype).reshape(ref.shape)

    @contextlib.contextmanager
    def when(self, condition):
        self.masks.append(np.asarray(condition))
        yield
        self.masks.pop()

    def choose(self, condition, then, otherwise):
        with self.when(condition):
            taken = then()
        return [value(np.where(condition, a, b)) for a, b in zip(taken, otherwise, strict=True)]

    def repeat(self, count, carry, body):
        """Threads that have gone round often enough keep what they have while others go on."""
        counts = np.asarray(count.value if isinstance(count, Int) else np.full(THREADS, count))
        for i in range(int(counts[self.active].max(initial=0))):
            going = counts > i
            with self.when(going):
                new = body(ptx.constant(i), list(carry))
            carry = [_choice(going, a, b) for a, b in zip(new, carry, strict=True)]
        return list(carry)

    def announce(self, barrier, size) -> None:
        """Bytes that a barrier is to wait for, over all threads."""
        sizes = size.value if isinstance(size, Int) else np.full(THREADS, size)
        self.announced += int(sizes[self.active].sum())

    def copy_bulk(self, shared, address, size, barrier) -> None:
        """At once: in lockstep nobody looks before the barrier says so."""
        for thread in np.flatnonzero(self.active):
            target, source = int(shared.value[thread]), int(address.value[thread])
            assert target % 16 == source % 16 == size % 16 == 0
            assert max(target, source) + size <= self.memory.size
            self.memory[target : target + size] = self.memory[source : source + size]
            self.copied += size

    @property
    def active(self) -> np.ndarray:
        return np.logical_and.reduce([np.ones(THREADS, bool), *self.masks])

    def _places(self, address, words: int) -> np.ndarray:
        starts = np.where(self.active, np.asarray(address, np.int64), 0)
        assert (starts >= 0).all(), "an active thread leaves memory"
        assert (starts + 4 * words <= self.memory.size).all(), "an active thread leaves memory"
        assert (starts % (4 * words) == 0).all(), f"{words} words at an address that isn't a multiple of {4 * words}"
        return starts[:, None] + np.arange(4 * words)

    def asm(self, text: str, *operands, results=(), pure=False):
        values = [o.value if isinstance(o, Int) else o for o in operands]
        name = text.split()[0].strip("{")
        words = int(re.search(r"\.v(\d)", name)[1]) if re.search(r"\.v\d", name) else 1
        numbers = [int(x, 16) for x in re.findall(r"0x[0-9a-f]+", text)]
        if name.startswith(("ld.shared", "ld.global")):
            data = self.memory[self._places(values[0], words)].view(np.uint32)
            return [value(data[:, i]) for i in range(words)]
        if relaxed := re.search(r"@\$\d ld\.relaxed\.gpu\.global\.v(\d)", text):
            with self.when(values[1]):
                data = self.memory[self._places(values[0], int(relaxed[1]))].view(np.uint32)
            return [value(np.where(values[1], column, 0), np.uint32) for column in data.T]
        if name.startswith(("st.shared", "st.global")):
            data = np.stack([np.asarray(v).view(np.uint32) for v in values[1:]], axis=1)
            places = self._places(values[0], words)[self.active]
            self.memory[places] = np.ascontiguousarray(data[self.active]).view(np.uint8)
            return None
        if name.startswith("atom.acq_rel.gpu.global.inc"):
            return [value(self._count(*values))]
        if name.startswith("lop3"):
            return [value((values[0] & np.uint32(numbers[0])) | np.uint32(numbers[1]))]
        if name.startswith("prmt"):
            pool = np.stack([np.asarray(v) for v in values], axis=1).view(np.uint8)
            picked = np.stack([pool[:, numbers[0] >> 4 * i & 7] for i in range(4)], axis=1)
            return [value(np.ascontiguousarray(picked).view(np.uint32)[:, 0])]
        if name.startswith("mma.sync"):
            return self._mma(values, _HALF[name.split(".")[7]])
        if packed := re.match(r"(fma|add|sub|mul)\.rn\.(bf16|f16)x2", name):
            a, b, *c = (_pair(v, _HALF[packed[2]]).astype(np.float64) for v in values)
            out = {"fma": lambda: a * b + c[0], "add": lambda: a + b, "sub": lambda: a - b, "mul": lambda: a * b}
            return [_word(out[packed[1]]().astype(_HALF[packed[2]]))]
        if name.startswith("cvt.rn."):
            high, low = values  # the instruction names the upper half first
            return [_word(np.stack([low, high], axis=1).astype(_HALF["bf16" if "bf16" in name else "f16"]))]
        if "cvt.f32.f16" in text:
            halves = _pair(values[0], np.float16).astype(np.float32)
            return [value(halves[:, i]) for i in range(2)]
        if half := re.search(r"cvt\.(r[nmp])\.f16\.f32", text):
            return [value(_to_half(np.asarray(values[0]), half[1]).view(np.uint16).astype(np.uint32))]
        if name.startswith("cvt.rni"):
            return [value(np.rint(values[0]).astype(np.uint32))]
        if name.startswith("div.rn"):
            return [value(values[0] / values[1])]
        if name.startswith("mov.u32"):
            return [value(np.arange(THREADS), np.uint32)]
        if name.startswith(("bar.warp", "bar.sync")):
            return None
        simple = {
            "fma": lambda a, b, c: a * b + c,
            "ex2": np.exp2,
            "rcp": lambda a: 1 / a,
            "rsqrt": lambda a: 1 / np.sqrt(a),
            "max": np.fmax,
            "min": np.fmin,
        }
        wide = [np.asarray(v, np.float64) for v in values]
        return [value(simple[name.split(".")[0]](*wide), np.float32)]

    def _count(self, address, last) -> np.ndarray:
        """One thread after the other."""
        before = np.zeros(THREADS, np.uint32)
        for thread, place in enumerate(self._places(address, 1)):
            if self.active[thread]:
                before[thread] = self.memory[place].view(np.uint32)[0]
                after = 0 if before[thread] >= last[thread] else before[thread] + 1
                self.memory[place] = np.array([after], np.uint32).view(np.uint8)
        return before

    def _mma(self, values, half):
        a, b, c = values[:4], values[4:6], values[6:10]
        warps, g, t = THREADS // 32, np.arange(32) // 4, np.arange(32) % 4
        left, right, total = (np.zeros((warps, *s)) for s in ((16, 16), (16, 8), (16, 8)))
        for i in range(4):
            pair = _pair(a[i], half).astype(np.float64).reshape(warps, 32, 2)
            for j in range(2):
                left[:, g + 8 * (i % 2), 2 * t + 8 * (i // 2) + j] = pair[:, :, j]
                total[:, g + 8 * (i // 2), 2 * t + i % 2] = np.asarray(c[i]).reshape(warps, 32)
                if i < 2:
                    right[:, 2 * t + 8 * i + j, g] = _pair(b[i], half).astype(np.float64).reshape(warps, 32, 2)[:, :, j]
        out = total + left @ right
        return [value(out[:, g + 8 * (i // 2), 2 * t + i % 2].reshape(-1), np.float32) for i in range(4)]

    def collective(self, text: str, *operands, result):
        x, lanes = np.asarray(operands[0]), np.arange(THREADS)
        if text.startswith("vote"):
            return value(np.repeat(x.reshape(-1, 32).any(axis=1), 32))
        if text.startswith("movmatrix"):
            rows = _pair(x, np.uint16).reshape(-1, 8, 8)
            return _word(np.ascontiguousarray(rows.transpose(0, 2, 1)).reshape(THREADS, 2))
        other = np.asarray(operands[1], np.int64)
        if ".bfly" in text:
            return value(x[lanes ^ other])
        if ".idx" in text:
            return value(x[lanes // 32 * 32 + other])
        return value(x[np.maximum(lanes - other, lanes // 32 * 32)])  # .up


def _to_half(x: np.ndarray, rounding: str) -> np.ndarray:
    half = x.astype(np.float16)
    back = half.astype(np.float32)
    wrong = {"rn": np.zeros(x.shape, bool), "rm": back > x, "rp": back < x}[rounding]
    return np.where(wrong, np.nextafter(half, np.float16(-np.inf if rounding == "rm" else np.inf)), half)


def _choice(condition, a, b):
    if isinstance(a, Int):
        return Int(_choice(condition, a.value, b.value))
    return value(np.where(condition, a, b))


def _pair(word, half) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(word)).view(half).reshape(THREADS, 2)


def _word(pair: np.ndarray) -> Value:
    return value(np.ascontiguousarray(pair).view(np.uint32).reshape(-1))
