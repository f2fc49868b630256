"""The emulator of a warpgroup with what the int4 kernel adds: copies into shared memory and ldmatrix."""

from types import SimpleNamespace

import numpy as np
from support.thread_emulator import _ARITH, THREADS, Threads, _constant, value

from pallas_kernels import ptx
from pallas_kernels.int4_matmul import warp_code
from pallas_kernels.ptx import Int


class Int4Threads(Threads):
    """Copies happen at once: in lockstep nobody looks before it has waited. ``block`` is the running block of the grid."""

    def __init__(self, monkeypatch, size: int):
        super().__init__(monkeypatch, size)
        self.block = 0
        self.read_bytes = 0
        monkeypatch.setattr(warp_code, "arith", _ARITH)
        monkeypatch.setattr(warp_code, "utils", SimpleNamespace(c=_constant, when=self.when))
        monkeypatch.setattr(ptx, "block_index", lambda: Int(value(self.block, np.uint32)))

    def asm(self, text: str, *operands, results=(), pure=False):
        if text.startswith(("cp.async.commit_group", "cp.async.wait_group", "bar.sync")):
            return None
        values = [o.value if isinstance(o, Int) else o for o in operands]
        if text.startswith("cp.async"):
            sizes = np.full(THREADS, 16) if len(values) == 2 else np.asarray(values[2])
            assert set(np.unique(sizes)) <= {0, 16}
            whole = sizes == 16
            source = self._places(np.where(whole, np.asarray(values[1], np.int64), 0), 4)
            data = np.where(whole[:, None], self.memory[source], 0)
            self.memory[self._places(values[0], 4)[self.active]] = data[self.active]
            self.read_bytes += int(sizes[self.active].sum())
            return None
        if text.startswith("ldmatrix"):
            rows = self.memory[self._places(values[0], 4)].view(np.uint32)  # 8 values of a row: 4 words
            lanes = np.arange(THREADS)
            words = [rows[lanes // 32 * 32 + 8 * matrix + lanes % 32 // 4, lanes % 4] for matrix in range(4)]
            return [value(w) for w in words]
        return super().asm(text, *operands, results=results, pure=pure)
