"""Which kernel, cut how, for a shape: a table of measurements, and rules where it has no entry near."""

import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pallas_kernels.device import HOPPER, HOPPER_TABLE, device_name
from pallas_kernels.int4_matmul.mosaic_stream import StreamConfig, int4_matmul_stream
from pallas_kernels.int4_matmul.mosaic_warp import int4_matmul_warp
from pallas_kernels.int4_matmul.mosaic_wgmma import MULTIPROCESSORS, WgmmaConfig, int4_matmul_wgmma
from pallas_kernels.int4_matmul.tiles import BLOCK, STRIP, groups_per_tile, padded
from pallas_kernels.int4_matmul.warp_cut import MAX_SHARED, WarpConfig
from pallas_kernels.int4_matmul.wgmma_registers import ring_bytes

Config = WarpConfig | WgmmaConfig | StreamConfig
KINDS: dict[str, type[Config]] = {"warp": WarpConfig, "wgmma": WgmmaConfig, "stream": StreamConfig}
SHARED_OF_BLOCK = {(8, 0): 163, (8, 6): 99, (8, 7): 163, (8, 9): 99, (12, 0): 99, (12, 1): 99}
"""KiB of shared memory that a block can have, by compute capability (CUDA C++ programming guide); elsewhere MAX_SHARED."""
MANY_TOKENS = 2048
"""An entry of so many stands for all above it; one of fewer may be cut for them alone (parts of the inputs, say)."""
MOST_WARP_TOKENS = 32
LEAST_STREAM_TOKENS = 512
"""Two tiles of tokens. Below, one round of blocks is often all there is, and parts of the inputs for each are as fast."""
_FULL_ENOUGH = 0.75
"""A last round with so many of its multiprocessors busy is not worth adding parts up (H200: 0.88 costs 4 %, 0.58 saves 1)."""
_NEAR = 0.25


@dataclass(frozen=True, slots=True)
class Shape:
    """A matmul: M tokens, K inputs, N outputs, and scales for each ``group_size`` inputs."""

    m: int
    k: int
    n: int
    group_size: int

    @property
    def strips(self) -> int:
        """Strips of 16 outputs."""
        return padded(self.n, self.k)[0] // STRIP

    @property
    def blocks(self) -> int:
        """Blocks of 128 inputs."""
        return padded(self.n, self.k)[1] // BLOCK


def choose(shape: Shape, *, capability: tuple[int, int] = HOPPER) -> Config | None:
    """The kernel for a shape on the GPU of this process, or on an H100 if it has none.

    Args:
        capability: of the GPU; wgmma is Hopper's alone.

    Returns:
        None where no kernel serves: many tokens without wgmma.
    """
    wgmma = capability[0] == HOPPER[0]
    for table in dict.fromkeys((device_name(), HOPPER_TABLE)) if wgmma else ():
        entry = _nearest(shape, _table(table))
        if entry is not None and fits(entry, shape):
            return entry
    if shape.m <= MOST_WARP_TOKENS:
        config = warp_rule(shape, capability)
        if config is not None and (shape.m <= 16 or not wgmma or shape.strips <= 2 * MULTIPROCESSORS):
            return config
    if not wgmma:
        return None
    return stream_rule(shape) if shape.m >= LEAST_STREAM_TOKENS else wgmma_rule(shape)


def kernel_of(config: Config) -> Callable[..., Any]:
    """The kernel that a config is of, with it: a function of (x, words, meta, layer [1]) and ``outputs`` and ``gated``."""
    if isinstance(config, WarpConfig):
        return partial(int4_matmul_warp, config=config)
    if isinstance(config, StreamConfig):
        return partial(int4_matmul_stream, config=config)
    return partial(int4_matmul_wgmma, config=config)


def fits(config: Config, shape: Shape, capability: tuple[int, int] = HOPPER) -> bool:
    """Can this kernel run this shape?"""
    groups = groups_per_tile(shape.group_size)
    most = SHARED_OF_BLOCK[capability] * 1024 if capability in SHARED_OF_BLOCK else MAX_SHARED
    if isinstance(config, WgmmaConfig):
        return config.sound and config.shared_bytes(groups) <= most and config.split <= shape.blocks
    if isinstance(config, StreamConfig):
        return config.sound and config.shared_bytes(groups) <= most
    _, rounds = config.grid(shape.strips)
    shared = config.shared_bytes(shape.m, groups, rounds)
    return shape.m <= MOST_WARP_TOKENS and shared <= most


def warp_rule(shape: Shape, capability: tuple[int, int] = HOPPER) -> WarpConfig | None:
    """One block for each multiprocessor if its strips are few; else small tiles that each block walks over."""
    share = -(-shape.strips // MULTIPROCESSORS)
    candidates = []
    if share <= 4:
        candidates += [WarpConfig(share, warps, stages) for warps in (8, 4) for stages in (4, 3, 2)]
    cuts = [(2, 16, 3)] if shape.m <= 8 else []
    cuts += [(4, 8, 2), (2, 8, 3), (2, 8, 2), (2, 4, 3), (2, 4, 2)]
    candidates += [WarpConfig(*cut, blocks=MULTIPROCESSORS) for cut in cuts]
    candidates.append(WarpConfig(2, 4, 2))  # the smallest, for GPUs with little shared memory
    return next((config for config in candidates if fits(config, shape, capability)), None)


def wgmma_rule(shape: Shape) -> WgmmaConfig:
    """Many outputs a block for few tokens, many tokens a block for many; inputs cut until every multiprocessor has a block."""
    tokens = next((t for t in (8, 16, 32, 64, 128) if shape.m <= t), 256)
    rows = 4 if tokens <= 64 else 2
    tiles = -(-shape.strips // (4 * rows)) * -(-shape.m // tokens)
    if tokens == 256 and tiles < MULTIPROCESSORS // 2:
        tokens, tiles = 128, -(-shape.strips // 8) * -(-shape.m // 128)
    split = max(1, min(MULTIPROCESSORS // tiles, shape.blocks // 4))
    return WgmmaConfig(rows, tokens, most_stages(shape, rows, tokens), split)


def stream_rule(shape: Shape) -> StreamConfig:
    """Blocks that stay, in pairs; a last round that is far from full is shared out."""
    tokens = next((t for t in (16, 32, 64, 128) if shape.m <= t), 256)
    config = StreamConfig(2, tokens, most_stages(shape, 2, tokens), cluster=2)
    rest = config.tiles(shape.strips, shape.m) % config.units
    return replace(config, sharing=config.units) if rest <= _FULL_ENOUGH * config.units else config


def most_stages(shape: Shape, rows: int, tokens: int) -> int:
    """Depth of a ring that fits: 6 at most, more were no faster."""
    groups = groups_per_tile(shape.group_size)
    return next(stages for stages in (6, 5, 4, 3, 2) if ring_bytes(rows, tokens, stages, groups) <= MAX_SHARED)


def invariant_config(shape: Shape) -> WgmmaConfig:
    """A kernel whose order of additions depends on N and K alone, so that a token's result doesn't depend on the batch."""
    tokens = next((t for t in (8, 16, 32, 64) if shape.m <= t), 64)
    split = max(1, min(MULTIPROCESSORS // -(-shape.strips // 16), shape.blocks // 4))
    return WgmmaConfig(4, tokens, 3, split)


@functools.cache
def _table(device: str) -> tuple[tuple[Shape, Config], ...]:
    path = Path(__file__).with_name("tuned") / f"{device}.json"
    if not path.is_file():
        return ()
    entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
    return tuple((Shape(e["m"], e["k"], e["n"], e["group_size"]), KINDS[e["kernel"]](**e["config"])) for e in entries)


def _nearest(shape: Shape, table: tuple[tuple[Shape, Config], ...]) -> Config | None:
    """The entry of the closest N and K, near enough, for the next number of tokens."""
    best, best_distance = None, None
    for other, config in table:
        if other.group_size != shape.group_size or other.m < min(shape.m, MANY_TOKENS):
            continue
        apart = abs(math.log2(other.n / shape.n)) + abs(math.log2(other.k / shape.k))
        if apart > _NEAR:
            continue
        distance = (apart, other.m < shape.m, abs(other.m - shape.m))
        if best_distance is None or distance < best_distance:
            best, best_distance = config, distance
    return best
