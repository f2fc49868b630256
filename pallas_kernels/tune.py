"""Find the fastest way to cut the work of a kernel for the shapes of real models on this machine's GPU, and write it down.

    python -m pallas_kernels.tune int4_matmul --seconds 300
    python -m pallas_kernels.tune int4_matmul --models llama-3-8b --tokens 1,16 --shards 1 --again
    python -m pallas_kernels.tune paged_attention

What is tried and where the table lies: ``tuning.py`` of the kernel's folder, which has ``add_arguments(parser)`` and
``sweep_and_write(options)``, the exit status.
"""

import argparse
import importlib
import sys

KERNELS = {name: f"pallas_kernels.{name}.tuning" for name in ("int4_matmul", "paged_attention")}


def main() -> int:
    """Sweep, and write the table after every shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="kernel", required=True)
    modules = {name: importlib.import_module(module) for name, module in KERNELS.items()}
    for name, module in modules.items():
        module.add_arguments(commands.add_parser(name))
    options = parser.parse_args()
    return modules[options.kernel].sweep_and_write(options)


if __name__ == "__main__":
    sys.exit(main())
