"""How attention's kernels cut their work for a shape: a table of measurements, and rules where it has no entry near.

What decides over the bits of a result (tile and chunk) depends on the model's heads and its cache alone, never on the rows of a
step, their number or their lengths: a sequence has the same result in any company.
"""

import functools
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pallas_kernels.device import HOPPER_TABLE, device_name
from pallas_kernels.paged_attention.decode_layout import DecodeConfig, Layout, Shape, reason_not
from pallas_kernels.paged_attention.prefill_shape import PrefillShape

USUAL_BATCH = 1024
"""Rows that a decode config must have room for: were it dropped for lack of it, large batches would have other bits than small."""
_NEAR = 1.5
"""How far a shape may be from an entry: factors of two of query heads and of the page."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a table: what it was measured for, and what was fastest.

    Attributes:
        kernel: "decode" or "prefill".
        group: query heads of a KV head.
        queries: query tokens of a row at most; 0 for prefill.
        config: fields of DecodeConfig, or ``key_tile`` and ``stages`` of PrefillShape.
        us: microseconds by workload, "batch x tokens".
    """

    kernel: str
    head_dim: int
    group: int
    bits: int
    page_size: int
    queries: int
    config: dict[str, Any]
    us: dict[str, float]

    def apart(self, kernel: str, shape: Shape | PrefillShape) -> float:
        """How far a shape is from this entry; infinite if the entry says nothing about it."""
        if isinstance(shape, Shape):
            head_dim, bits, queries = shape.stored.head_dim, shape.stored.bits, shape.queries
        else:
            head_dim, bits, queries = shape.head_dim, shape.bits, 0
        if (self.kernel, self.head_dim, self.bits) != (kernel, head_dim, bits) or (self.queries > 1) != (queries > 1):
            return math.inf
        group = shape.heads // shape.kv_heads
        return abs(math.log2(group / self.group)) + abs(math.log2(shape.page_size / self.page_size))


def choose_decode(shape: Shape) -> DecodeConfig:
    """The config of a shape on the GPU of this process, or on an H100 if it has none."""
    usual = replace(shape, batch=max(shape.batch, USUAL_BATCH))
    for entry in _near("decode", shape):
        config = DecodeConfig(**entry.config)
        if reason_not(usual, config) is None:
            return config
    return decode_rule(shape)


def decode_rule(shape: Shape) -> DecodeConfig:
    """Two pipelines where each has three stages, else one: differences seen on an H100 are small (LOG.md)."""
    config = DecodeConfig(groups=2)
    return config if Layout(shape, config).stages >= 3 else DecodeConfig(groups=1)


def choose_prefill(shape: PrefillShape) -> PrefillShape:
    """The shape with the key tile and stages of the nearest entry, else by rule."""
    for entry in _near("prefill", shape):
        chosen = replace(shape, **entry.config)
        if chosen.reason_not is None:
            return chosen
    return prefill_rule(shape)


def prefill_rule(shape: PrefillShape) -> PrefillShape:
    """As many keys as leave room for two stages, and for a thread's share of scores and output in its registers."""
    return replace(shape, key_tile=64 if shape.head_dim > 128 else 128, stages=2)


def table_path(device: str) -> Path:
    """Where the table of a device is."""
    return Path(__file__).with_name("tuned") / f"{device}.json"


@functools.cache
def entries(device: str) -> tuple[Entry, ...]:
    """The lines of a device's table; none where it has no table."""
    path = table_path(device)
    if not path.is_file():
        return ()
    return tuple(Entry(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))["entries"])


def _near(kernel: str, shape: Shape | PrefillShape) -> list[Entry]:
    """Entries that say something about a shape, the nearest first."""
    table = entries(device_name()) or entries(HOPPER_TABLE)
    apart = sorted(((entry.apart(kernel, shape), i) for i, entry in enumerate(table)))
    return [table[i] for distance, i in apart if distance <= _NEAR]
