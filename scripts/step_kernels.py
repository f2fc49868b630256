"""The kernels that XLA makes of one step on an H100, without one: compiled ahead of time, counted, in order of number.

    pip install jax-cuda13-plugin jax-cuda13-pjrt   # of jaxlib's version; and a CUDA toolkit for ptxas
    JAX_PLATFORMS=cpu XLA_FLAGS=--xla_gpu_cuda_data_dir=/usr/local/cuda \\
        python scripts/step_kernels.py --shape llama-3-8b --weights w4a16 --rows 1 --layers 4

No time is known, and no matmul kernel is tried out. What shows is what fuses, what is computed anew in every layer, and what is
copied: with --pages as many as a real cache has, also what XLA does when it sees little memory left.
"""

import argparse
import re
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from engine_bench.shapes import SHAPES, WEIGHTS, model_config
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from jaxdeploy.cache.kv_pages import KVPages
from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.engine.batch import StepLayout
from jaxdeploy.engine.buckets import Bucket
from jaxdeploy.engine.step import Scores, model_program
from jaxdeploy.model.decoder import Decoder, random_parameters
from jaxdeploy.weights.tiled_tensor import tile_weights

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 shared_memory_per_block_optin: 232448 registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
NO_KERNEL = ("get-tuple-element", "tuple", "parameter", "bitcast", "constant", "after-all")


def kernels(hlo: str, computation: str | None = None) -> Counter[str]:
    """How often each kernel is launched by a computation of an optimized module, its loops included.

    Names lose XLA's numbering; a Mosaic kernel has its own name, taken from the end of its operation's path.

    Args:
        computation: the module's entry, if None.
    """
    found: Counter[str] = Counter()
    text = hlo[hlo.index("\nENTRY " if computation is None else f"\n%{computation} (") + 1 :]
    for line in text[: text.index("\n}")].splitlines()[1:]:
        operation = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = .*? ([\w\-]+)\(", line.partition(", metadata=")[0])
        if operation is None or operation[2] in NO_KERNEL:
            continue
        if operation[2] == "while":
            turns, body = re.search(r'"known_trip_count":\{"n":"(\d+)"', line), re.search(r"body=%([\w.\-]+)", line)
            if turns is None or body is None:
                raise ValueError(f"a loop of unknown length: {line.strip()[:200]}")
            found += Counter({name: int(turns[1]) * count for name, count in kernels(hlo, body[1]).items()})
            continue
        mosaic = re.search(r'op_name="[^"]*/(\w+)/mpmd_map"', line)
        found[mosaic[1] if mosaic else re.sub(r"[._]\d+|\.?remat\d*|\.clone", "", operation[1])] += 1
    return found


def compiled_step(options: argparse.Namespace) -> jax.stages.Compiled:
    """One step as the engine has it on a GPU."""
    config = replace(model_config(options.shape, options.weights), num_layers=options.layers)
    config = replace(config, sliding_windows=config.sliding_windows[: options.layers])
    if EngineConfig(quant_policy=options.quant_policy).rotates:
        config = config.with_rotation(foldable=True)
    topology = topologies.get_topology_desc("h100", "cuda", target_config=H100, topology="1x1x1")
    sharding = SingleDeviceSharding(topology.devices[0])
    tokens = options.prefill or options.rows
    bucket = Bucket(tokens, options.rows, not options.prefill, options.rows, mixed=options.mixed)
    layout = StepLayout(bucket, table_width=options.table_width, padding_slot=options.rows)

    def arguments() -> tuple:
        dtype = config.dtype
        create = partial(KVPages.create, config, options.pages, quant_policy=options.quant_policy, dtype=dtype)
        slots = jnp.zeros(options.rows + 1, jnp.int32)
        params, scores = random_parameters(config, dtype), Scores.create(options.rows, config.vocab_size)
        return tile_weights(params), create(), scores, slots

    described: Any = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), jax.eval_shape(arguments)
    )
    step = model_program(Decoder(config, config.dtype), layout, *described, platform="gpu")
    return step.lower().compile(compiler_options=step.compiler_options)


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-3-8b", choices=SHAPES)
    parser.add_argument("--weights", default="w4a16", choices=WEIGHTS)
    parser.add_argument("--quant-policy", type=int, default=0, choices=(0, 8, 4))
    parser.add_argument("--rows", type=int, default=1, help="of the step")
    parser.add_argument("--prefill", type=int, help="tokens of a prefill step; without it, a decode step")
    parser.add_argument("--mixed", action="store_true", help="answers ride along with the prompts")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--pages", type=int, default=512)
    parser.add_argument("--table-width", type=int, default=128, help="pages of the longest sequence")
    parser.add_argument("--hlo", help="write the optimized module here")
    options = parser.parse_args()
    try:
        step = compiled_step(options)
    except (RuntimeError, ValueError) as error:
        print(f"error: {error}\nThis needs XLA's CUDA plugin and ptxas; see --help.", file=sys.stderr)
        return 1
    text = step.as_text() or ""
    if options.hlo:
        with open(options.hlo, "w", encoding="utf-8") as file:
            file.write(text)
    found = kernels(text)
    for name, count in found.most_common():
        print(f"{count:6d}  {name}")
    print(f"{found.total():6d}  in all, {options.layers} layers")
    memory = step.memory_analysis()
    if memory is not None:
        print(f"{memory.temp_size_in_bytes / 1e6:,.0f} MB of temporary buffers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
