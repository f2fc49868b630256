"""Speed of the GPU kernels beside their peers, each checked before it is timed.

    python scripts/bench_kernels.py int4_matmul --peers --gated --json int4.json --plot int4.png

Needs an NVIDIA GPU. What is measured and how: the docstring of the module of the kernel in ``scripts/kernel_bench``.
"""

import argparse
import importlib
import sys
from importlib.metadata import version
from pathlib import Path

import jax
from kernel_bench.report import save, table

BENCHMARKS = {
    "int4_matmul": "kernel_bench.int4_matmul",
    "paged_attention": "kernel_bench.paged_attention",
    "kv_write": "kernel_bench.kv_write",
    "rms_norm": "kernel_bench.rms_norm",
    "head_basis": "kernel_bench.head_basis",
}


def main() -> int:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="kernel", required=True)
    for name, module in BENCHMARKS.items():
        command = commands.add_parser(name)
        importlib.import_module(module).add_arguments(command)
        command.add_argument("--json", type=Path, help="also write the numbers here")
        command.add_argument("--plot", help="write a picture here (matplotlib)")
    options = parser.parse_args()
    if jax.default_backend() != "gpu":
        print(f"an NVIDIA GPU is needed; jax sees {jax.devices()}", file=sys.stderr)
        return 2
    benchmark = importlib.import_module(BENCHMARKS[options.kernel])
    command = " ".join(["python", *sys.argv])
    rows = []
    for row in benchmark.main(options):
        rows.append(row)
        if options.json:  # row by row: a run that is cut off leaves what it has
            save(rows, options.json, device=jax.devices()[0].device_kind, jax=version("jax"), command=command)
    print(table(rows))
    if options.plot:
        benchmark.roofline(rows, options.plot)
    return 0 if all(row.get("ok", True) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
