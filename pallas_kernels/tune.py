"""Find the fastest way to cut the work of a kernel for every real shape on this machine's GPU, and write it down.

    python -m pallas_kernels.tune int4_matmul --tokens 1,16,64,256 --models llama-3-8b --shards 1

Candidates are the rules' own choice and its neighbours. The table goes to ``int4_matmul/tuned/<device>.json``, where
``choice.choose`` reads it; shapes that were there before keep their entries unless they are measured again.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.int4_matmul import choice
from pallas_kernels.int4_matmul.cases import MODELS, all_cases, random_tiles
from pallas_kernels.int4_matmul.choice import Config, Shape, fits
from pallas_kernels.int4_matmul.mosaic_warp import WarpConfig, int4_matmul_warp
from pallas_kernels.int4_matmul.mosaic_wgmma import WgmmaConfig, int4_matmul_wgmma
from pallas_kernels.timing import microseconds

STACK_BYTES = 2**28
"""Of the layers that calls rotate over: five times the L2 cache."""
LEAST_CALLS = 4


@dataclass(frozen=True, slots=True)
class Timed:
    """A candidate and its time; None where it did not compile."""

    shape: Shape
    config: Config
    us: float | None


def candidates(shape: Shape) -> list[Config]:
    """What is worth a measurement for a shape: what the rules say first, then what lies around it."""
    found: list[Config] = []
    if shape.m <= choice.MOST_WARP_TOKENS:
        rule = choice.warp_rule(shape, gated=False)
        found += [rule] if rule is not None else []
        share = -(-shape.strips // choice.MULTIPROCESSORS)
        for strips in sorted({1, 2, 3, 4, 7, share} & set(range(1, 9))):
            for warps in (4, 8, 16):
                for stages in (2, 3, 4):
                    blocks = choice.MULTIPROCESSORS if -(-shape.strips // strips) > choice.MULTIPROCESSORS else 0
                    found.append(WarpConfig(strips, warps, stages, blocks))
    if shape.m > 16:
        rule = choice.wgmma_rule(shape)
        found.append(rule)
        tokens = [t for t in (16, 32, 64, 128, 256) if t >= min(shape.m, 256) or t == 128]
        for rows in (1, 2, 3, 4):
            for t in tokens:
                tiles = -(-shape.strips // (4 * rows)) * -(-shape.m // t)
                fill = max(1, choice.MULTIPROCESSORS // tiles)
                for split in {1, fill, max(1, fill // 2)}:
                    for stages in (3, 5):
                        if not (t == 256 and rows > 2) and not (t == 128 and rows == 4 and stages == 5):
                            found.append(WgmmaConfig(rows, t, stages, split))
    return [config for config in dict.fromkeys(found) if fits(config, shape, gated=False)]


def call(config: Config, shape: Shape, x: jax.Array, words: jax.Array, meta: jax.Array, layer: int) -> jax.Array:
    """One matmul cut as ``config`` says."""
    number = jnp.full(1, layer, jnp.int32)
    if isinstance(config, WarpConfig):
        return int4_matmul_warp(x, words, meta, number, outputs=shape.n, config=config)
    return int4_matmul_wgmma(x, words, meta, number, outputs=shape.n, config=config)


def sweep(shape: Shape) -> Iterator[Timed]:
    """Time every candidate: kernels only (CUPTI), median of three runs over all layers of a stack."""
    bytes_of_layer = shape.strips * shape.blocks * 1024
    calls = max(LEAST_CALLS, -(-STACK_BYTES // bytes_of_layer))
    words, meta = random_tiles(calls, shape.n, shape.k, shape.group_size)
    x = jax.random.normal(jax.random.key(0), (shape.m, shape.k), jnp.bfloat16)

    def compiled(config: Config) -> Any:
        try:
            run = jax.jit(lambda x, w, s: [call(config, shape, x, w, s, layer) for layer in range(calls)])
            return run.lower(x, words, meta).compile()
        except Exception as error:  # a candidate that ptxas refuses is no candidate; say so and go on
            print(f"{shape} {config}: {error}", file=sys.stderr)
            return None

    configs = candidates(shape)
    with ThreadPoolExecutor() as pool:
        programs = list(pool.map(compiled, configs))
    for config, program in zip(configs, programs, strict=True):
        if program is None:
            yield Timed(shape, config, None)
            continue
        yield Timed(shape, config, microseconds(program, calls, x, words, meta))


def entry(best: Timed) -> dict[str, Any]:
    """A line of the table."""
    kernel = next(name for name, kind in choice.KINDS.items() if isinstance(best.config, kind))
    return {**asdict(best.shape), "kernel": kernel, "config": asdict(best.config), "us": best.us}


def merged(table: dict[str, Any], entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """New entries in place of those of the same shape; ordered by shape."""
    shape = ("k", "n", "group_size", "m")
    found = {tuple(e[name] for name in shape): e for e in [*table.get("entries", []), *entries]}
    return [found[key] for key in sorted(found)]


def main() -> int:
    """Sweep, and write the table after every shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernel", choices=("int4_matmul",))
    parser.add_argument("--tokens", default="1,16,32,64,128,256,2048", help="M, with commas")
    parser.add_argument("--models", help=f"with commas, of {', '.join(m.name for m in MODELS)}; default all")
    parser.add_argument("--shards", default="1,2,4", help="degrees of tensor parallelism, with commas")
    parser.add_argument("--out", type=Path, help="the table; default int4_matmul/tuned/<device>.json")
    options = parser.parse_args()
    if jax.default_backend() != "gpu":
        print(f"tuning needs an NVIDIA GPU; jax sees {jax.devices()}", file=sys.stderr)
        return 2
    from rich.progress import track

    path = options.out or Path(choice.__file__).with_name("tuned") / f"{choice.device_name()}.json"
    table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    cases = all_cases(tuple(int(s) for s in options.shards.split(",")))
    if options.models:
        cases = [case for case in cases if case.model in options.models.split(",")]
    shapes = [Shape(int(m), case.k, case.n, case.group_size) for case in cases for m in options.tokens.split(",")]
    for shape in track(shapes, "tuning"):
        timed = [t for t in sweep(shape) if t.us is not None]
        best = min(timed, key=lambda t: t.us or 0.0, default=None)
        if best is None:
            continue
        print(f"{shape}: {best.config} {best.us:.2f} us, of {len(timed)}")
        table = {
            "device": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "entries": merged(table, [entry(best)]),
        }
        path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
