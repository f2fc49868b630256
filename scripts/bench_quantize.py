"""Time by stage and peak memory of int4 quantization, on a model of real shape with random weights and random tokens.

    python scripts/bench_quantize.py --shape internlm2.5-1.8b --method awq_gptq --seconds 150 --json found.jsonl
    python scripts/bench_quantize.py --shape llama-3-8b --method awq_gptq --seconds 330 --json found.jsonl

Each method runs in a process of its own, so that its peak memory is its own and its compilations are counted. ``NAME:LAYERS`` takes
a model with fewer layers. The tutorial's calibration is the default: 128 samples of 2048 tokens.

A JSON line comes with each finished layer and one at the end of each method, at once, so a run that is cut off has said what it
measured. ``--seconds`` ends all of it before the layer that would no longer fit. Then the time of a whole model stands in
``computed`` and says what of; ``whole_model_seconds`` is a measurement or null.

The checkpoint has one layer's random weights, read anew for every layer under that layer's names: writing 16 GB of random numbers
takes longer than quantizing them. No time depends on the weights' values, and both kinds of file would be read from the page cache.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

METHODS = {
    "awq": {},
    "fixed": {"scaling": "fixed", "clip": False},
    "gptq": {"scaling": "none", "clip": False, "rounding": "gptq"},
    "awq_gptq": {"scaling": "search", "clip": True, "rounding": "gptq"},
    "round": {"scaling": "none", "clip": False, "rounding": "learned"},
}
_LAYER = re.compile(r"\.layers\.\d+\.")


class RepeatedLayer:
    """A TensorSource of many layers that reads one for all of them.

    Args:
        source: of a checkpoint with one layer.
        layers: how many to show.
    """

    def __init__(self, source: Any, layers: int):
        self._source, self._layers = source, layers

    def names(self) -> Sequence[str]:
        """Every tensor's name."""
        found = []
        for name in self._source.names():
            numbered = _LAYER.search(name)
            copies = range(self._layers) if numbered else (0,)
            found += [_LAYER.sub(f".layers.{layer}.", name) for layer in copies]
        return found

    def info(self, name: str) -> Any:
        """Of the first layer's tensor."""
        return self._source.info(_LAYER.sub(".layers.0.", name))

    def read(self, name: str) -> Any:
        """The first layer's tensor."""
        return self._source.read(_LAYER.sub(".layers.0.", name))

    def close(self) -> None:
        """Let go of the files."""
        self._source.close()


class OutOfTimeError(Exception):
    """The next layer would not end before the deadline."""


class Watch:
    """Writes a line for every finished layer and stops before one that would not fit.

    Args:
        start: what each line begins with.
        json_file: lines are added to it, None for none; they are printed all the same.
        deadline: of ``time.time()``, None for none.
    """

    def __init__(self, start: dict[str, Any], json_file: Path | None, deadline: float | None):
        self._start, self._file, self._deadline = start, json_file, deadline
        self.begun = self._last = time.perf_counter()
        self.layers: list[float] = []
        self.stages: dict[str, float] = {}
        self.host_bytes = 0
        self.errors: list[float] = []

    def __call__(self, record: Any, stages: Mapping[str, Any]) -> None:
        """``observe`` of ``quantize_checkpoint``."""
        from jaxdeploy import runtime

        now = time.perf_counter()
        self.layers.append(now - self._last)
        self._last = now
        before, self.stages = self.stages, {name: stage.seconds for name, stage in stages.items()}
        self.host_bytes = max(stage.host_bytes for stage in stages.values())
        self.errors.append(record.error)
        self.line(
            "layer",
            layer=record.layer,
            seconds=round(self.layers[-1], 2),
            stages={name: round(spent - before.get(name, 0.0), 3) for name, spent in self.stages.items()},
            elapsed=round(now - self.begun, 1),
            compilations=runtime.compilations(),
            peak_device_bytes=peak_device_bytes(),
            error=record.error,
        )
        # The first layer compiles; only those after it say what the next will take.
        if self._deadline is not None and time.time() + max(self.layers[1:], default=0.0) > self._deadline:
            raise OutOfTimeError

    def line(self, kind: str, **found: Any) -> None:
        """One JSON line, out of this process at once."""
        text = json.dumps(self._start | {"kind": kind} | found)
        print(text, flush=True)
        if self._file:
            with self._file.open("a") as file:
                file.write(text + "\n")

    def computed(self, layers: int) -> dict[str, Any] | None:
        """The time that ``layers`` would take, and of what it is computed; None from a single layer, which compiled."""
        if len(self.layers) < 2:
            return None
        rest = statistics.median(self.layers[1:])
        return {
            "seconds": round(self.layers[0] + (layers - 1) * rest, 1),
            "of": f"layer 0 with all before it ({self.layers[0]:.1f} s) + {layers - 1} x the median of layers 1 to "
            f"{len(self.layers) - 1} ({rest:.2f} s); neither perplexity nor writing the model",
        }


def peak_device_bytes() -> int | None:
    """Of the first device so far; None where it does not say."""
    import jax

    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def checkpoint_of(shape: str, layers: int | None, scratch: Path) -> Any:
    """An open checkpoint of random bfloat16 weights; its one layer is written once per shape."""
    from bench_model import SHAPES, write_random_checkpoint

    from jaxdeploy.config.model import ModelConfig
    from jaxdeploy.weights.checkpoint import open_checkpoint

    config = SHAPES[shape] | {"dtype": "bfloat16"}
    count = layers or config["num_hidden_layers"]
    folder = scratch / shape
    if not (folder / "config.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_random_checkpoint(config | {"num_hidden_layers": 1}, folder)
    opened = open_checkpoint(folder)
    raw = config | {"num_hidden_layers": count}
    return replace(opened, config=ModelConfig.from_hf(raw), raw_config=raw, source=RepeatedLayer(opened.source, count))


def measure(args: argparse.Namespace, scratch: Path) -> None:
    """One method, in this process."""
    from jaxdeploy import runtime  # sets XLA's environment before jax starts

    # isort: split
    import jax
    import numpy as np

    from jaxdeploy.lite.calibration_data import Samples
    from jaxdeploy.lite.quantize import quantize_checkpoint
    from jaxdeploy.lite.recipe import Calibration, Recipe

    name, _, layers = args.method[0].partition(":")
    begun = time.perf_counter()
    checkpoint = checkpoint_of(args.shape, int(layers) if layers else None, scratch)
    print(f"{args.method[0]}: checkpoint after {time.perf_counter() - begun:.1f} s", flush=True)
    runtime.set_compile_cache("")
    config = checkpoint.config
    tokens = np.random.default_rng(0).integers(
        0, config.vocab_size, (args.samples + args.eval_samples, args.seqlen), dtype=np.int32
    )
    samples = Samples(tokens[: args.samples], tokens[args.samples :], "random")
    recipe = Recipe(**METHODS[name], group_size=args.group_size, steps=args.steps, step_tokens=args.step_tokens)
    calibration = Calibration(
        dataset="random", samples=args.samples, seqlen=args.seqlen, batch_size=args.batch_size,
        eval_samples=args.eval_samples,
    )  # fmt: skip
    start = {"shape": args.shape, "method": name, "layers": config.num_layers, "tokens": [args.samples, args.seqlen]}
    start |= {"device": jax.devices()[0].device_kind, "jax": version("jax")}
    watch = Watch(start, args.json, args.deadline)
    report = None
    try:
        report = quantize_checkpoint(
            checkpoint, scratch / f"out-{name}", recipe, calibration, force=True, observe=watch, samples=samples
        )
    except OutOfTimeError:
        print(f"{args.method[0]}: out of time after {len(watch.layers)} of {config.num_layers} layers", flush=True)
    seconds = round(time.perf_counter() - watch.begun, 1)
    if report is not None:
        watch.stages = {stage.name: stage.seconds for stage in report.stages}
        watch.host_bytes = max(stage.host_bytes for stage in report.stages)
    watch.line(
        "method",
        layers_done=len(watch.layers),
        whole_model_seconds=None if report is None else seconds,
        computed=watch.computed(config.num_layers) if report is None else None,
        seconds=seconds,
        first_layer_seconds=round(watch.layers[0], 2),
        layer_seconds_median=round(statistics.median(watch.layers[1:]), 3) if watch.layers[1:] else None,
        stages={stage: round(spent, 2) for stage, spent in watch.stages.items()},
        compilations=runtime.compilations(),
        peak_device_bytes=peak_device_bytes(),
        peak_host_bytes=watch.host_bytes,
        bytes=None if report is None else [report.bytes_before, report.bytes_after],
        errors=watch.errors,
    )


def main() -> None:
    """Measure every method; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", default="tiny", help="of scripts/bench_model.py")
    parser.add_argument("--method", action="append", required=True, help=f"NAME or NAME:LAYERS; {', '.join(METHODS)}")
    parser.add_argument(
        "--seconds", type=float, help="stop before the layer that would not end by then; for all methods"
    )
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=2048)
    parser.add_argument("--eval-samples", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=200, help="of round, per layer")
    parser.add_argument("--step-tokens", type=int, default=4096)
    parser.add_argument("--scratch", type=Path, help="keeps the checkpoints; default: a temporary folder")
    parser.add_argument("--json", type=Path, help="the lines are added to this file")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        measure(args, args.scratch)
        return
    deadline = [] if args.seconds is None else ["--deadline", str(time.time() + args.seconds)]
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        scratch = args.scratch or Path(temporary)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
        for method in args.method:
            if deadline and time.time() > float(deadline[1]):
                print(f"{method}: not begun, --seconds {args.seconds} are over", flush=True)
                continue
            command = [
                sys.executable,
                __file__,
                *_without(sys.argv[1:], "--method"),
                "--one",
                "--method",
                method,
                *deadline,
            ]
            command += [] if args.scratch else ["--scratch", str(scratch)]
            failed |= subprocess.run(command, check=False, env=environment).returncode
    sys.exit(1 if failed else 0)


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
