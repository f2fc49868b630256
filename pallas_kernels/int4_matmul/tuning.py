"""What ``python -m pallas_kernels.tune`` tries for the int4 matmul: which shapes first, which cuts, and how one is timed."""

import argparse
import functools
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import sweep
from pallas_kernels.device import device_name
from pallas_kernels.int4_matmul import choice
from pallas_kernels.int4_matmul.cases import MODELS, cases_of, random_tiles
from pallas_kernels.int4_matmul.choice import MULTIPROCESSORS, Config, Shape, fits
from pallas_kernels.int4_matmul.mosaic_stream import StreamConfig
from pallas_kernels.int4_matmul.mosaic_wgmma import WgmmaConfig
from pallas_kernels.int4_matmul.tiles import groups_per_tile, padded
from pallas_kernels.int4_matmul.warp_cut import WarpConfig
from pallas_kernels.timing import microseconds

FIRST_MODELS = ("llama-3-8b", "internlm2.5-1.8b", "internlm2.5-7b", "qwen2.5-7b", "mistral-7b")
FIRST_TOKENS = (1, 16, 64, 256, 2048, 32, 128, 8)
"""The numbers of tokens that are measured, in order of importance; ``choice`` takes the next larger one."""
STACK_BYTES = 2**28
"""Of the layers that calls rotate over: five times the L2 cache."""
MOST_CALLS = 64
"""Of a program; so the stack of a matrix below 4 MB is smaller than STACK_BYTES, and of one below 0.8 MB than the L2 cache."""
LEAST_CALLS = 4
WRONG = 1e-2
"""A relative difference to the rules' choice that is no rounding: the kernels differ by 3e-3 (the rounding of weights)."""
WARP_CUTS = ((2, 8, 4), (2, 8, 3), (2, 8, 2), (2, 16, 3), (4, 8, 2), (3, 8, 3), (1, 8, 4), (1, 16, 3))
"""Strips, warps, stages: those that won on an H100, and what lies beside them."""
KEY = ("k", "n", "group_size", "m")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which shapes to tune."""
    parser.add_argument("--tokens", default=",".join(map(str, FIRST_TOKENS)), help="M, with commas")
    parser.add_argument("--models", help=f"with commas, of {', '.join(m.name for m in MODELS)}; default all")
    parser.add_argument("--shards", default="1,2,4", help="degrees of tensor parallelism, with commas")
    sweep.add_arguments(parser)


def sweep_and_write(options: argparse.Namespace) -> int:
    """Sweep, and write the table after every shape; returns the exit status."""
    tuning: Any = sys.modules[__name__]
    return sweep.sweep_and_write(tuning, options)


def table_path() -> Path:
    """Of this process's GPU."""
    return Path(choice.__file__).with_name("tuned") / f"{device_name()}.json"


def shapes(options: argparse.Namespace) -> list[Shape]:
    """Whole models first, the usual ones before the others, uncut before cut; all tokens of a matrix one after the other.

    Raises:
        ValueError: a model that isn't known.
    """
    names = options.models.split(",") if options.models else [m.name for m in MODELS]
    unknown = set(names) - {m.name for m in MODELS}
    if unknown:
        raise ValueError(f"unknown models {sorted(unknown)}; there are {', '.join(m.name for m in MODELS)}")
    rank = {name: position for position, name in enumerate(FIRST_MODELS)}
    models = sorted((m for m in MODELS if m.name in names), key=lambda m: rank.get(m.name, len(rank)))
    found = [
        Shape(int(tokens), case.k, case.n, case.group_size)
        for shards in map(int, options.shards.split(","))
        for model in models
        for case in cases_of(model, shards=shards)
        for tokens in options.tokens.split(",")
    ]
    return list(dict.fromkeys(found))


def key(shape: Shape) -> tuple:
    """What identifies a shape; the order of the table."""
    return tuple(getattr(shape, name) for name in KEY)


def key_of(entry: dict[str, Any]) -> tuple:
    """The key of an entry's shape."""
    return tuple(entry[name] for name in KEY)


def entry(shape: Shape, config: Config, us: float) -> dict[str, Any]:
    """A line of the table."""
    kernel = next(name for name, kind in choice.KINDS.items() if isinstance(config, kind))
    return {**asdict(shape), "kernel": kernel, "config": asdict(config), "us": round(us, 2)}


def candidates(shape: Shape) -> list[Config]:
    """What is worth a measurement for a shape: what the rules say first, then what won before and its neighbours."""
    found: list[Config] = []
    if shape.m <= choice.MOST_WARP_TOKENS:
        rule = choice.warp_rule(shape)
        share = -(-shape.strips // MULTIPROCESSORS)
        cuts = [*WARP_CUTS, *((share, 8, stages) for stages in (4, 3, 2) if share <= 7)]
        walks = [MULTIPROCESSORS if -(-shape.strips // strips) > MULTIPROCESSORS else 0 for strips, _, _ in cuts]
        found += [] if rule is None else [rule]
        found += [WarpConfig(*cut, blocks) for cut, blocks in zip(cuts, walks, strict=True)]
    if shape.m > 16:
        found += _wgmma_candidates(shape)
    before = choice.choose(shape)
    if before is not None:
        found.insert(1, before)
    if isinstance(before, WgmmaConfig):
        found.insert(2, replace(before, in_flight=2))
    return [config for config in dict.fromkeys(found) if fits(config, shape)]


def _wgmma_candidates(shape: Shape) -> list[Config]:
    tile = next((t for t in (16, 32, 64, 128) if shape.m <= t), 256)
    # 4 x 128 has too few registers; more than 2 x 256 has none.
    rows_of = {16: (4, 3, 2, 1), 32: (4, 3, 2, 1), 64: (4, 3, 2, 1), 128: (3, 2, 1), 256: (2, 1)}
    pairs = [(rows, tile) for rows in rows_of[tile]]
    if tile >= 128:
        pairs += [(4, 64)] if shape.m <= 256 else []
        pairs += [(3, 128), (2, 128)] if tile == 256 else []
    rule = choice.wgmma_rule(shape)
    found: list[Config] = [rule, replace(rule, in_flight=2)]
    for rows, tokens in pairs:
        stages = choice.most_stages(shape, rows, tokens)
        tiles = -(-shape.strips // (4 * rows)) * -(-shape.m // tokens)
        fill = min(MULTIPROCESSORS // tiles, shape.blocks // 4)
        splits = dict.fromkeys((1, fill, 2) if fill > 1 else (1,))
        found += [WgmmaConfig(rows, tokens, stages, split, in_flight=2) for split in splits]
    if tile >= 128:
        for rows, tokens in ((2, tile), (1, tile), (2, 128)):
            stages = choice.most_stages(shape, rows, tokens)
            found += [
                StreamConfig(rows, tokens, stages, cluster, sharing)
                for cluster in (1, 2)
                for sharing in (0, MULTIPROCESSORS // cluster)
            ]
    return found


def calls(shape: Shape) -> int:
    """Of one program, each with a layer of its own."""
    return min(MOST_CALLS, max(LEAST_CALLS, -(-STACK_BYTES // (shape.strips * shape.blocks * 1024))))


def multiply(config: Config, shape: Shape, x: jax.Array, words: jax.Array, meta: jax.Array, layer: int) -> jax.Array:
    """One matmul cut as ``config`` says."""
    return choice.kernel_of(config)(x, words, meta, jnp.full(1, layer, jnp.int32), outputs=shape.n)


def compiled(shape: Shape, config: Config) -> jax.stages.Compiled:
    """A program of ``calls`` matmuls, each with another layer."""
    layers, (outputs, inputs) = calls(shape), padded(shape.n, shape.k)
    tiles = (layers, outputs // 16, inputs // 128)
    described = (
        jax.ShapeDtypeStruct((shape.m, shape.k), jnp.bfloat16),
        jax.ShapeDtypeStruct((*tiles, 256), jnp.int32),
        jax.ShapeDtypeStruct((*tiles, groups_per_tile(shape.group_size), 16), jnp.int32),
    )
    run = jax.jit(lambda x, words, meta: [multiply(config, shape, x, words, meta, layer) for layer in range(layers)])
    return run.lower(*described).compile()


def timer(shape: Shape) -> Callable[[Callable[..., Any]], float]:
    """Microseconds of a matmul: kernels only (CUPTI), median of three runs over all layers of a stack.

    The first program is that of the rules, whose kernels the tests check; another that differs from it raises ArithmeticError.
    """
    layers = calls(shape)
    stack = _stack(layers, shape.n, shape.k, shape.group_size)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(shape.m, shape.k)), jnp.bfloat16)
    expected: list[np.ndarray] = []

    def time(program: Callable[..., Any]) -> float:
        last = np.asarray(program(x, *stack)[-1], np.float32)
        if not expected:
            expected.append(last)
        difference = float(np.linalg.norm(last - expected[0]) / np.linalg.norm(expected[0]))
        if not difference <= WRONG:
            raise ArithmeticError(f"the result differs by {difference:.1e} from that of the rules' choice")
        return microseconds(program, layers, x, *stack)

    return time


@functools.lru_cache(maxsize=1)
def _stack(layers: int, n: int, k: int, group_size: int) -> tuple[jax.Array, jax.Array]:
    """Of one matrix; its numbers of tokens come one after the other."""
    return jax.jit(random_tiles, static_argnums=(0, 1, 2, 3))(layers, n, k, group_size)
