"""What a layer's quantization should take on an H100, from the programs compiled for one, without one.

    pip install jax-cuda13-plugin jax-cuda13-pjrt   # of jaxlib's version; and a CUDA toolkit for ptxas
    JAX_PLATFORMS=cpu XLA_FLAGS=--xla_gpu_cuda_data_dir=/usr/local/cuda \\
        python scripts/quantize_programs.py --shape llama-3-8b

A prediction, not a measurement: operations of matrix products at half of the device's rate, plus the bytes that every kernel reads
and writes at 3 TB/s, plus 5 us for every launch. It shows which stage to look at, and what launches too often.
"""

import argparse
import math
import re
import sys
from collections import Counter, defaultdict
from typing import Any, NamedTuple

import jax
from engine_bench.shapes import SHAPES, model_config
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from step_kernels import H100, NO_KERNEL

from jaxdeploy.lite import gptq
from jaxdeploy.lite.layer_programs import LayerShapes, layer_calls
from jaxdeploy.lite.recipe import Recipe
from jaxdeploy.weights.leaf import leaf_plans

RATES = {"bfloat16": 380e12, "TF32": 190e12, "float32": 30e12}
BYTES_PER_SECOND, LAUNCH = 3e12, 5e-6
PER_CHUNK = ("count_chunk", "run_chunk")
_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s64": 8, "f64": 8}
_INDEXED = ("dynamic-slice", "gather", "dynamic-update-slice")


class Instruction(NamedTuple):
    """One line of an HLO computation."""

    name: str
    shape: str
    kind: str
    rest: str
    root: bool

    @property
    def operands(self) -> list[str]:
        """Names of what it reads."""
        return re.findall(r"%([\w.\-]+)", self.rest.partition("), ")[0])


def operations(jaxpr: Any, times: int = 1) -> Counter[str]:
    """Floating-point operations of matrix products and factorizations, by the arithmetic that a GPU does them in."""
    found: Counter[str] = Counter()
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        first: Any = equation.invars[0].aval if equation.invars else None
        inner = times * equation.params["length"] if name == "scan" else times
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(first.shape[axis] for axis in contracted)
            exact = "HIGHEST" in str(equation.params["precision"])
            kind = "bfloat16" if first.dtype.itemsize == 2 else "float32" if exact else "TF32"
            found[kind] += 2 * times * depth * math.prod(equation.outvars[0].aval.shape)
        elif name in ("cholesky", "triangular_solve"):
            found["float32"] += times * first.shape[-1] ** 3 // (3 if name == "cholesky" else 1)
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(parameter):
                found += operations(getattr(parameter, "jaxpr", parameter), inner)
    return found


def traffic(hlo: str) -> tuple[int, int]:
    """(bytes that all kernels read and write, how many are launched) of an optimized module; loops count each turn."""
    computations: dict[str, list[Instruction]] = defaultdict(list)
    current = entry = ""
    for line in hlo.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$", line):
            current = head[2]
            entry = current if head[1] else entry
        elif found := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$", line):
            computations[current].append(Instruction(found[2], found[3], found[4], found[5], bool(found[1])))

    def total(name: str) -> tuple[int, int]:
        size = launches = 0
        shapes = {step.name: step.shape for step in computations[name]}
        for step in computations[name]:
            if step.kind in NO_KERNEL:
                continue
            if step.kind == "while":
                turns = re.search(r'known_trip_count":\{"n":"(\d+)"', step.rest)
                body = re.search(r"body=%?([\w.\-]+)", step.rest)
                assert turns, f"{step.name} has no known number of turns: the host would wait for each"
                assert body
                inside = total(body[1])
                size, launches = size + int(turns[1]) * inside[0], launches + int(turns[1]) * (inside[1] + 1)
                continue
            launches += 1
            called = re.search(r"calls=%?([\w.\-]+)", step.rest) if step.kind == "fusion" else None
            if called:
                size += _fusion_bytes(computations[called[1]], step.shape)
            else:
                size += _bytes(step.shape) + sum(_bytes(shapes.get(operand, "")) for operand in step.operands)
        return size, launches

    return total(entry)


def _fusion_bytes(steps: list[Instruction], result: str) -> int:
    """What a fused kernel moves: of an array that it only indexes, the part that it takes or replaces."""
    shapes = {step.name: step.shape for step in steps}
    size = 0
    for parameter in (step for step in steps if step.kind == "parameter"):
        uses = [step for step in steps if parameter.name in step.operands]
        whole = any(use.kind not in _INDEXED or use.operands[0] != parameter.name for use in uses)
        taken = [use for use in uses if use.kind != "dynamic-update-slice"]
        size += _bytes(parameter.shape) if whole or not uses else sum(_bytes(use.shape) for use in taken)
    root = next(step for step in steps if step.root)
    return size + _bytes(shapes[root.operands[1]] if root.kind == "dynamic-update-slice" else result)


def _bytes(shape: str) -> int:
    """Of all arrays in a shape as HLO writes it."""
    arrays = re.findall(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]", shape)
    return sum(
        _SIZES.get(dtype, 4) * math.prod(int(size) for size in sizes.split(",") if size) for dtype, sizes in arrays
    )


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-3-8b", choices=SHAPES)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=2048)
    parser.add_argument("--group-size", type=int, default=128)
    options = parser.parse_args()
    config = model_config(options.shape)
    rows = max(8192 // options.seqlen, 1)
    plans = [plan for plan in leaf_plans(config, config.dtype) if plan.source.stacked]
    weights = {".".join(plan.path[1:]): jax.ShapeDtypeStruct(plan.layer_shape, config.dtype) for plan in plans}
    shapes = LayerShapes(weights, (rows, options.seqlen, config.hidden_size), 1, config.dtype, config.dtype)
    recipe = Recipe(rounding="gptq", group_size=options.group_size)
    try:
        topology = topologies.get_topology_desc("h100", "cuda", target_config=H100, topology="1x1x1")
    except (NotImplementedError, RuntimeError, ValueError) as error:
        print(f"error: {error}\nThis needs XLA's CUDA plugin and ptxas; see --help.", file=sys.stderr)
        return 1
    sharding = SingleDeviceSharding(topology.devices[0])
    gptq.COLUMNS_PER_TURN["cpu"] = gptq.COLUMNS_PER_TURN["gpu"]  # programs are traced on the CPU for the GPU
    stages: defaultdict[str, float] = defaultdict(float)
    for call in layer_calls(config, recipe, shapes):
        name = call.program.__name__
        arguments = jax.tree.map(
            lambda leaf: (
                jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
                if isinstance(leaf, jax.ShapeDtypeStruct)
                else leaf
            ),
            call.arguments,
        )
        counted = operations(call.program.trace(*arguments).jaxpr.jaxpr)
        compiled = call.program.lower(*arguments).compile()
        moved, launches = traffic(compiled.as_text() or "")
        times = options.samples // rows if name in PER_CHUNK else 1
        seconds = (
            sum(done / RATES[kind] for kind, done in counted.items()) + moved / BYTES_PER_SECOND + launches * LAUNCH
        )
        stages[call.stage] += times * seconds
        work = ", ".join(f"{done / 1e12:.2f} T {kind}" for kind, done in counted.items())
        room = compiled.memory_analysis().temp_size_in_bytes / 1e9
        print(
            f"{call.stage:<11}{name:<16}{times:3d} x {seconds:.4f} s  {moved / 1e9:7.1f} GB  {launches:6d} launches  "
            f"{room:5.2f} GB besides  {work}",
            flush=True,
        )
    print(", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in stages.items()))
    print(
        f"{sum(stages.values()):.2f} s per layer, {config.num_layers * sum(stages.values()):.0f} s for {config.num_layers}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
