"""What ptxas makes of the int4 matmul's kernels, without a GPU: registers, spills, its warnings and the instructions that matter.

    pip install jax-cuda13-plugin jax-cuda13-pjrt nvidia-cuda-nvdisasm   # of jaxlib's version; and a CUDA toolkit for ptxas
    JAX_PLATFORMS=cpu XLA_FLAGS=--xla_gpu_cuda_data_dir=/usr/local/cuda \\
        python scripts/kernel_sass.py --table h100
    ... python scripts/kernel_sass.py --cut 256x4096x28672 '{"rows": 2, "tokens": 256, "stages": 3, "cluster": 2, "sharing": 66}'
    ... python scripts/kernel_sass.py --cut 1x4096x4096 '{"strips": 2, "warps": 8, "stages": 4}' --target a100
    python scripts/kernel_sass.py --ptx dump/*.ptx        # any kernel's; of MOSAIC_GPU_DUMP_TO=dump MOSAIC_GPU_DUMP_PTX=1

Instructions are counted as they stand in the code, not as often as they run. The status is 1 if a kernel spills, or if ptxas runs
wgmma one after the other (C7510 to C7514).
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from step_kernels import H100

from pallas_kernels.int4_matmul import choice
from pallas_kernels.int4_matmul.choice import Config, Shape
from pallas_kernels.int4_matmul.tiles import groups_per_tile, padded

COUNTED = ("HGMMA", "HMMA", "UTMALDG", "UTMASTG", "LDGSTS.128", "LDS.128", "LDSM", "LDL", "STL")
"""Tensor cores; copies by the copy engine, in and out; asynchronous copies and loads of 16 bytes; ldmatrix; spills."""
HOPPER_FIELD = "cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }"


@dataclass(frozen=True, slots=True)
class Target:
    """A GPU to compile for: compute capability, multiprocessors, bytes of shared memory of one and at most of a block."""

    capability: tuple[int, int]
    multiprocessors: int
    shared: int
    shared_of_block: int

    def description(self) -> str:
        """As XLA reads it."""
        major, minor = self.capability
        if (major, minor) == (9, 0):
            return H100
        text = H100.replace(HOPPER_FIELD, f"cuda_compute_capability {{ major: {major} minor: {minor} }}")
        for name, number in (
            ("core_count", self.multiprocessors),
            ("shared_memory_per_core", self.shared),
            ("shared_memory_per_block_optin", self.shared_of_block),
        ):
            text = re.sub(rf"\b{name}: \d+", f"{name}: {number}", text)
        return text


TARGETS = {
    "h100": Target((9, 0), 132, 233472, 232448),
    "a100": Target((8, 0), 108, 167936, 166912),
    "rtx4090": Target((8, 9), 128, 102400, 101376),
}


@dataclass(frozen=True, slots=True)
class Summary:
    """Of one kernel: registers of a thread, spilled bytes, what ptxas warns of, instructions by the names of COUNTED."""

    registers: int
    spills: int
    warnings: tuple[str, ...]
    instructions: Counter[str]

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {self.instructions[name]}" for name in COUNTED if self.instructions[name])
        return "; ".join([f"{self.registers} registers, {self.spills} bytes spilled", counts, *self.warnings])

    @property
    def good(self) -> bool:
        """Neither spills nor wgmma one after the other."""
        return not self.spills and not any("(C75" in warning for warning in self.warnings)


def summary(ptxas: str, sass: str) -> Summary:
    """Read what ``ptxas -v`` said and what nvdisasm printed."""
    used = re.search(r"Used (\d+) registers", ptxas)
    if used is None:
        raise ValueError(f"ptxas -v reported no registers: {ptxas[:500]!r}")
    spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill", ptxas))
    found = re.findall(r"(?:warning|info)\s*: (\(C\d+\).*|.*setmaxnreg.*)", ptxas)
    return Summary(int(used[1]), spills, tuple(dict.fromkeys(found)), instructions(sass))


def instructions(sass: str) -> Counter[str]:
    """How often each instruction of COUNTED stands in nvdisasm's listing."""
    counts: Counter[str] = Counter()
    for name in re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", sass):
        base, *modifiers = name.split(".")
        wide = f"{base}.128"
        counts[wide if "128" in modifiers and wide in COUNTED else base] += 1
    return Counter({name: counts[name] for name in COUNTED if counts[name]})


def tool(name: str) -> str:
    """Path of one of CUDA's programs: of PATH, a toolkit, or a wheel.

    Raises:
        FileNotFoundError: it is in none of them.
    """
    folders = [Path("/usr/local/cuda/bin")]
    nvidia = find_spec("nvidia")
    for place in (nvidia.submodule_search_locations or []) if nvidia else []:
        folders += sorted(Path(place).glob("*/bin"))
    found = shutil.which(name) or next((str(f / name) for f in folders if (f / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{name} is neither on PATH nor in {', '.join(map(str, folders))}")
    return found


def assemble(ptx: Path) -> Summary:
    """Run ptxas and nvdisasm on one kernel; the architecture is the one that the PTX names."""
    target = re.search(r"^\.target (\w+)", ptx.read_text(encoding="utf-8"), re.MULTILINE)
    if target is None:
        raise ValueError(f"{ptx} names no .target: is it PTX?")
    cubin = ptx.with_suffix(".cubin")
    run = subprocess.run(
        [tool("ptxas"), "-v", f"-arch={target[1]}", str(ptx), "-o", str(cubin)], capture_output=True, text=True
    )
    if run.returncode:
        raise RuntimeError(f"ptxas refuses {ptx.name}: {run.stderr.strip()[:1000]}")
    sass = subprocess.run([tool("nvdisasm"), str(cubin)], capture_output=True, text=True, check=True).stdout
    ptx.with_suffix(".sass").write_text(sass, encoding="utf-8")
    return summary(run.stdout + run.stderr, sass)


def compile_cut(shape: Shape, config: Config, folder: Path, target: Target, dtype: str = "bfloat16") -> Path:
    """Compile one matmul for ``target``; returns the PTX that Mosaic leaves in ``folder``, which must be empty."""
    topology = topologies.get_topology_desc("gpu", "cuda", target_config=target.description(), topology="1x1x1")
    sharding = SingleDeviceSharding(topology.devices[0])
    outputs, inputs = padded(shape.n, shape.k)
    tiles = (2, outputs // 16, inputs // 128)
    described: list[Any] = [
        jax.ShapeDtypeStruct(size, kind, sharding=sharding)
        for size, kind in (
            ((shape.m, shape.k), dtype),
            ((*tiles, 256), jnp.int32),
            ((*tiles, groups_per_tile(shape.group_size), 16), jnp.int32),
            ((1,), jnp.int32),
        )
    ]
    # It disassembles too, and says so on stderr where its nvdisasm is missing.
    root = str(Path(tool("nvdisasm")).parents[1])
    os.environ |= {"MOSAIC_GPU_DUMP_TO": str(folder), "MOSAIC_GPU_DUMP_PTX": "1", "MOSAIC_GPU_CUDA_ROOT": root}
    # Mosaic asks the process's own GPU for the architecture, and takes Hopper's where there is none.
    with mock.patch("jax.experimental.mosaic.gpu.utils._infer_arch", return_value=target.capability):
        jax.jit(lambda *arrays: choice.kernel_of(config)(*arrays, outputs=shape.n)).lower(*described).compile()
    [ptx] = folder.glob("*.ptx")
    return ptx


def config_of(fields: dict[str, int]) -> Config:
    """The cut that has these fields."""
    kind = "warp" if "strips" in fields else "stream" if "cluster" in fields else "wgmma"
    return choice.KINDS[kind](**fields)


def wanted(options: argparse.Namespace) -> Iterator[tuple[Shape, Config]]:
    """The matmuls that the command line names."""
    for text, fields in options.cut or []:
        m, k, n = (int(number) for number in text.split("x"))
        yield Shape(m, k, n, options.group_size), config_of(json.loads(fields))
    if options.table:
        path = Path(choice.__file__).with_name("tuned") / f"{options.table}.json"
        for entry in json.loads(path.read_text(encoding="utf-8"))["entries"]:
            yield (
                Shape(*(entry[name] for name in ("m", "k", "n", "group_size"))),
                choice.KINDS[entry["kernel"]](**entry["config"]),
            )


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", help="every entry of tuned/<table>.json")
    parser.add_argument("--cut", nargs=2, action="append", metavar=("MxKxN", "JSON"), help="a shape and its cut")
    parser.add_argument("--group-size", type=int, default=128, help="of --cut")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16"))
    parser.add_argument("--target", default="h100", choices=TARGETS)
    parser.add_argument(
        "--ptx", nargs="+", type=Path, default=[], help="files to assemble and count; .sass beside them"
    )
    parser.add_argument("--keep", type=Path, help="leave PTX and SASS of the compiled kernels in this folder")
    options = parser.parse_args()
    good = True
    try:
        for path in options.ptx:
            found = assemble(path)
            good &= found.good
            print(f"{path.name}: {found}", flush=True)
        for number, (shape, config) in enumerate(wanted(options)):
            with tempfile.TemporaryDirectory() as folder:
                ptx = compile_cut(shape, config, Path(folder), TARGETS[options.target], options.dtype)
                found = assemble(ptx)
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    for file in (ptx, ptx.with_suffix(".sass")):
                        shutil.copy(file, options.keep / f"{number:02d}_{file.name}")
            good &= found.good
            print(f"{shape.m} x {shape.k} x {shape.n} {config}: {found}", flush=True)
    except (RuntimeError, OSError) as error:
        print(f"error: {error}\nThis needs XLA's CUDA plugin, ptxas and nvdisasm; see --help.", file=sys.stderr)
        return 2
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
