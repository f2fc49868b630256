"""Time by stage and peak memory of int4 quantization, on a model of real shape with random weights and random tokens.

    python scripts/bench_quantize.py --shape internlm2.5-1.8b --method awq --method gptq --method round:4

Each method runs in a process of its own, so that its peak memory is its own and its compilations are counted. ``NAME:LAYERS`` takes
a model with fewer layers. The tutorial's calibration is the default: 128 samples of 2048 tokens.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

METHODS = {
    "awq": {},
    "fixed": {"scaling": "fixed", "clip": False},
    "gptq": {"scaling": "none", "clip": False, "rounding": "gptq"},
    "awq_gptq": {"scaling": "search", "clip": True, "rounding": "gptq"},
    "round": {"scaling": "none", "clip": False, "rounding": "learned"},
}


def checkpoint(shape: str, layers: int | None, scratch: Path) -> tuple[Path, dict]:
    """A random bfloat16 checkpoint, written once, and its config.json."""
    from bench_model import SHAPES, write_random_checkpoint

    config = SHAPES[shape] | {"dtype": "bfloat16"}
    if layers is not None:
        config["num_hidden_layers"] = layers
    folder = scratch / f"{shape}-{config['num_hidden_layers']}"
    if not folder.is_dir():
        folder.mkdir(parents=True)
        write_random_checkpoint(config, folder)
    return folder, config


def measure(args: argparse.Namespace, scratch: Path) -> dict:
    """One method, in this process."""
    from jaxdeploy import runtime  # sets XLA's environment before jax starts

    # isort: split
    import jax
    import numpy as np

    from jaxdeploy.lite.calibration_data import Samples
    from jaxdeploy.lite.quantize import quantize_model
    from jaxdeploy.lite.recipe import Calibration, Recipe

    name, _, layers = args.method[0].partition(":")
    begun = time.perf_counter()
    folder, config = checkpoint(args.shape, int(layers) if layers else None, scratch)
    print(f"{args.method[0]}: checkpoint after {time.perf_counter() - begun:.1f} s", flush=True)
    tokens = np.random.default_rng(0).integers(
        0, config["vocab_size"], (args.samples + args.eval_samples, args.seqlen), dtype=np.int32
    )
    samples = Samples(tokens[: args.samples], tokens[args.samples :], "random")
    recipe = Recipe(**METHODS[name], group_size=args.group_size, steps=args.steps, step_tokens=args.step_tokens)
    calibration = Calibration(
        dataset="random", samples=args.samples, seqlen=args.seqlen, batch_size=args.batch_size,
        eval_samples=args.eval_samples,
    )  # fmt: skip
    begun = time.perf_counter()

    def progress(phase: str, done: int, total: int) -> None:
        print(f"  {phase} {done}/{total} after {time.perf_counter() - begun:.1f} s", flush=True)

    report = quantize_model(
        folder, scratch / f"out-{name}", recipe, calibration, force=True, compile_cache="", progress=progress,
        samples=samples,
    )  # fmt: skip
    device = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "shape": args.shape,
        "layers": config["num_hidden_layers"],
        "method": name,
        "device": report.device,
        "jax": version("jax"),
        "tokens": [args.samples, args.seqlen],
        "seconds": report.seconds,
        "seconds_by_layer": [record.seconds for record in report.layers],
        "stages": {stage.name: round(stage.seconds, 2) for stage in report.stages},
        "compilations": runtime.compilations(),
        "peak_device_bytes": device,
        "peak_host_bytes": max(stage.host_bytes for stage in report.stages),
        "bytes": [report.bytes_before, report.bytes_after],
        "errors": [record.error for record in report.layers],
    }


def main() -> None:
    """Measure every method and print a line each; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", default="tiny", help="of scripts/bench_model.py")
    parser.add_argument("--method", action="append", required=True, help=f"NAME or NAME:LAYERS; {', '.join(METHODS)}")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=2048)
    parser.add_argument("--eval-samples", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=200, help="of round, per layer")
    parser.add_argument("--step-tokens", type=int, default=4096)
    parser.add_argument("--scratch", type=Path, help="keeps the checkpoints; default: a temporary folder")
    parser.add_argument("--json", type=Path, help="a line per method is added to this file")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        found = measure(args, args.scratch)
        print(json.dumps({key: value for key, value in found.items() if key != "errors"}), flush=True)
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(found) + "\n")
        return
    with tempfile.TemporaryDirectory() as temporary:
        scratch = args.scratch or Path(temporary)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
        for method in args.method:
            command = [sys.executable, __file__, *_without(sys.argv[1:], "--method"), "--one", "--method", method]
            command += [] if args.scratch else ["--scratch", str(scratch)]
            subprocess.run(command, check=False, env=environment)


def _without(arguments: list[str], option: str) -> list[str]:
    """``arguments`` less every ``option`` and its value."""
    left, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == option:
            skip = True
        elif not argument.startswith(f"{option}="):
            left.append(argument)
    return left


if __name__ == "__main__":
    main()
