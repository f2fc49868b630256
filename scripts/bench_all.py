"""Runs the benchmarks that docs/benchmarks.md tells of, one after the other, the most telling first, until all ran or time is up.

    python scripts/bench_all.py --out build/measurements --seconds 570
    python scripts/bench_all.py --out build/measurements --only engine-8b,int4_matmul
    python scripts/bench_all.py --list

What has a result in --out is not run again, so a second call goes on where the first one stopped. Each run has a log there
(NAME.log), what it printed before it failed or was cut off included; most write NAME.json, which ``scripts/bench_report.py`` and
the logs of the kernels take. Needs an NVIDIA GPU.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LEAST_SECONDS = 20
"""What is left of the time below which nothing is begun."""
TOLERANCE = 2.5
"""How many times as long as expected a run may take."""


@dataclass(frozen=True)
class Run:
    """One benchmark.

    Attributes:
        command: what follows ``python``; ``{json}`` is where the result goes, ``{folder}`` that of all results.
        seconds: that it took on an H200, or should take, compiling included.
    """

    name: str
    command: str
    seconds: int

    def arguments(self, folder: Path) -> list[str]:
        """The command line."""
        values = {"json": folder / f"{self.name}.json", "folder": folder}
        return [sys.executable, *(word.format(**values) for word in shlex.split(self.command))]


TESTS = "-m pytest -o addopts=--import-mode=importlib -m gpu --noconftest -p no:cacheprovider -q"
ENGINE = "scripts/bench_engine.py --json {json} --measure first-token,prefill,decode --concurrency 1,16,64,256"
LOAD = (
    "scripts/bench_engine.py --json {json} --measure first-token,prefill,load,decode --shape llama-3-8b --weights w4a16 "
    "--device-memory 24 --load-concurrency 256 --load-prompt 1024 --load-new 512 --requests 384 --lengths fixed "
    "--max-prefill-token-num 2048"
)
START = "scripts/bench_engine.py --json {json} --measure start"
KERNELS = "scripts/bench_kernels.py {kernel} --json {{json}}"
QUANTIZE = "scripts/bench_quantize.py --json {json} --method awq_gptq"
RUNS = (
    Run("test-int4-cuts", f"{TESTS} -k 'cut or norm' tests/pallas_kernels/int4_matmul/test_int4_gpu.py", 70),
    Run("engine-8b", f"{ENGINE} --shape llama-3-8b --weights w4a16", 80),
    Run("engine-1.8b", f"{ENGINE} --shape internlm2.5-1.8b --weights w4a16", 75),
    Run("load-kv16", f"{LOAD} --concurrency 1,16,64", 130),
    Run("load-kv4", f"{LOAD} --concurrency 1,256 --quant-policy 4", 130),
    Run("start-8b", f"{START} --shape llama-3-8b --weights w4a16 --concurrency 1,16,64,256", 90),
    Run("engine-8b-kv4", f"{ENGINE} --shape llama-3-8b --weights w4a16 --quant-policy 4", 130),
    Run("paged_attention", f"{KERNELS.format(kernel='paged_attention')} --peers", 240),
    Run("int4_matmul", f"{KERNELS.format(kernel='int4_matmul')} --peers --gated --layer --invariant", 85),
    Run("tune-int4", "-m pallas_kernels.tune int4_matmul --seconds 240 --out {json}", 250),
    Run("engine-8b-bf16", f"{ENGINE} --shape llama-3-8b --weights bf16", 50),
    Run("engine-8b-kv8", f"{ENGINE} --shape llama-3-8b --weights w4a16 --quant-policy 8", 95),
    Run("test-int4", f"{TESTS} tests/pallas_kernels/int4_matmul", 90),
    Run("test-attention", f"{TESTS} tests/pallas_kernels/paged_attention", 110),
    Run("test-others", f"{TESTS} tests/pallas_kernels --ignore-glob *int4_matmul* --ignore-glob *paged_attention*", 70),
    Run("test-decoder", f"{TESTS} tests/jaxdeploy/model/test_decoder_gpu.py", 100),
    Run("int4_matmul-prefill", f"{KERNELS.format(kernel='int4_matmul')} --peers --tokens 2048,8192", 60),
    Run("engine-8b-head8", f"{ENGINE} --shape llama-3-8b --weights w4a16 --lm-head-bits 8", 80),
    Run("quantize-1.8b", f"{QUANTIZE} --shape internlm2.5-1.8b --seconds 150", 40),
    Run("quantize-8b", f"{QUANTIZE} --shape llama-3-8b --seconds 330", 90),
    Run("kv_write", KERNELS.format(kernel="kv_write"), 45),
    Run("rms_norm", KERNELS.format(kernel="rms_norm"), 30),
    Run("head_basis", KERNELS.format(kernel="head_basis"), 30),
    Run("load-kv8", f"{LOAD} --concurrency 1,64 --quant-policy 8", 130),
    Run("tune-attention", "-m pallas_kernels.tune paged_attention --out {json}", 240),
)


def run(each: Run, folder: Path, seconds: float) -> str:
    """Run one benchmark for at most so long; returns what became of it."""
    finished = folder / f"{each.name}.done"
    arguments = each.arguments(folder)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with (folder / f"{each.name}.log").open("w") as log:
        print("$", "python", shlex.join(arguments[1:]), file=log, flush=True)
        try:
            status = subprocess.run(
                arguments, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=seconds, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return f"cut off after {seconds:.0f} s"
    if status:
        return f"failed ({status})"
    finished.touch()
    return "done"


def main(arguments: list[str] | None = None, runs: tuple[Run, ...] = RUNS) -> int:
    """The command line; returns 0 if all that was asked for has a result, 1 if not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="in all; what is cut off has its log")
    parser.add_argument("--only", help="names, with commas, in the order in which they are to run")
    parser.add_argument("--list", action="store_true", help="only say what there is")
    options = parser.parse_args(arguments)
    named = {each.name: each for each in runs}
    wanted = options.only.split(",") if options.only else list(named)
    if unknown := [name for name in wanted if name not in named]:
        parser.error(f"--only {','.join(unknown)} must be among {', '.join(named)}")
    if options.list:
        for name in wanted:
            print(f"{name}: about {named[name].seconds} s: python {named[name].command}")
        return 0
    if options.out is None:
        parser.error("--out must say where the results go")
    options.out.mkdir(parents=True, exist_ok=True)
    begun, missing = time.monotonic(), False
    for name in wanted:
        if (options.out / f"{name}.done").exists():
            print(f"{name}: has a result", flush=True)
            continue
        left = options.seconds - (time.monotonic() - begun)
        if left < LEAST_SECONDS:
            print(f"{name}: no time left", flush=True)
            missing = True
            continue
        started = time.monotonic()
        outcome = run(named[name], options.out.resolve(), min(left, TOLERANCE * named[name].seconds))
        missing |= outcome != "done"
        print(f"{name}: {outcome} after {time.monotonic() - started:.0f} s", flush=True)
    return int(missing)


if __name__ == "__main__":
    sys.exit(main())
