"""Speed of the engine without a server, on random weights of real shape.

    python scripts/bench_engine.py --shape llama-3-8b --weights w4a16 --concurrency 1,16,64,256 --quant-policy 4 --json report.json

What is measured (``--measure``, several with commas):

- ``decode``: tokens/s of a full batch of each --concurrency, --prompt tokens in and --new out, and what the host costs a step
- ``prefill``: milliseconds to the first token of one prompt of --prefill tokens
- ``load``: --requests requests of --lengths, --concurrency at a time: throughput, TTFT, ITL
- ``stall``: time between tokens of running answers while prompts of --prefill tokens arrive
- ``mixed``: TTFT and ITL while short prompts and prompts of --prefill tokens arrive at random, with mixed steps small and large
- ``start``: seconds from process start to first token by phase, with an empty compile cache and with a filled one
- ``first-token``: the same for this very process
"""

import argparse
import json
import sys
import time
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxdeploy import runtime

# isort: split
import jax
from benchmark_report.origin import origin
from engine_bench import measure
from engine_bench.arrivals import mixed_load
from engine_bench.lengths import DISTRIBUTIONS, jobs
from engine_bench.memory_limit import limit_memory
from engine_bench.shapes import SHAPES, WEIGHTS, SilentTokenizer, model_config
from engine_bench.start import cold_and_warm, process_age

from jaxdeploy.config.engine import LM_HEAD_BITS, EngineConfig
from jaxdeploy.engine.engine import Engine
from jaxdeploy.engine.limits import Limits
from jaxdeploy.lite.head import with_rounded_head
from jaxdeploy.model.decoder import random_parameters

MEASURES = ("decode", "prefill", "load", "stall", "mixed", "start", "first-token")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--shape", default="tiny", choices=SHAPES)
    options.add_argument("--weights", default="bf16", choices=WEIGHTS)
    options.add_argument("--group-size", type=int, default=128, help="of w4a16")
    options.add_argument("--quant-policy", type=int, default=0, choices=(0, 8, 4))
    options.add_argument("--lm-head-bits", type=int, default=16, choices=LM_HEAD_BITS)
    options.add_argument("--measure", default="decode,prefill", help=f"with commas: {', '.join(MEASURES)}")
    options.add_argument("--concurrency", default=[1, 16, 64], type=_numbers, help="with commas; default 1,16,64")
    options.add_argument("--prompt", type=int, default=512)
    options.add_argument("--new", type=int, default=256)
    options.add_argument("--prefill", default=[2048], type=_numbers, help="with commas; default 2048")
    options.add_argument("--requests", type=int, default=128)
    options.add_argument("--load-concurrency", type=_numbers, help="of load, with commas; default as --concurrency")
    options.add_argument("--load-prompt", type=int, help="of load; default as --prompt")
    options.add_argument("--load-new", type=int, help="of load; default as --new")
    options.add_argument(
        "--request-rate", type=float, help="of mixed, requests/s; default 70 %% of what the engine can take"
    )
    options.add_argument("--lengths", default="sharegpt", choices=DISTRIBUTIONS)
    options.add_argument(
        "--repeats", type=int, default=1, help="of decode, the best counts; of prefill five times as many"
    )
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--cache-max-entry-count", type=float, default=0.8)
    options.add_argument("--device-memory", type=float, help="GiB of the GPU that may be used; default all but 3 %%")
    options.add_argument("--cache-block-seq-len", type=int, default=64)
    options.add_argument("--max-prefill-token-num", type=int)
    options.add_argument("--num-tokens-per-iter", type=int)
    options.add_argument("--num-speculative-tokens", type=int, default=0)
    options.add_argument("--compile-cache", help="folder of compiled programs")
    options.add_argument("--trace", help="folder for a profile of some decode steps of each batch size")
    options.add_argument("--json", type=Path, help="also write the numbers here")
    return options


def load_lengths(options: argparse.Namespace) -> tuple[int, int]:
    """Tokens in and out of a request of ``load``."""
    return options.load_prompt or options.prompt, options.load_new or options.new


def build(options: argparse.Namespace) -> tuple[Engine, dict[str, float]]:
    """The engine, warmed up, and the seconds of each phase since the process began."""
    phases = {"import": process_age()}
    begun = time.perf_counter()
    device = jax.devices()[0]
    phases["device"] = time.perf_counter() - begun
    config = model_config(options.shape, options.weights, group_size=options.group_size)
    if EngineConfig(quant_policy=options.quant_policy).rotates:
        config = config.with_rotation(foldable=True)  # as loading a checkpoint does; random weights need no fold
    runtime.set_compile_cache(options.compile_cache)
    begun = time.perf_counter()
    params = jax.device_put(random_parameters(config, config.dtype), device)
    params = with_rounded_head(params, bits=options.lm_head_bits, tied=config.tie_word_embeddings)
    jax.block_until_ready(params)
    phases["random weights"] = time.perf_counter() - begun
    longest = max(
        options.prompt + options.new,
        sum(load_lengths(options)),
        *(length + 8 for length in options.prefill),
    )
    engine_options = EngineConfig(
        dtype=config.dtype,
        max_batch_size=max([*options.concurrency, *(options.load_concurrency or ())]),
        session_len=longest,
        quant_policy=options.quant_policy,
        cache_max_entry_count=options.cache_max_entry_count,
        cache_block_seq_len=options.cache_block_seq_len,
        max_prefill_token_num=options.max_prefill_token_num,
        num_tokens_per_iter=options.num_tokens_per_iter,
        num_speculative_tokens=options.num_speculative_tokens,
    )
    limits = Limits.resolve(engine_options, config, platform=device.platform)
    engine = Engine(config, params, SilentTokenizer(config.vocab_size), engine_options, limits)
    return engine, phases | engine.executor.start_seconds


def run(options: argparse.Namespace, wanted: list[str]) -> dict[str, Any]:
    """Everything that was asked for, and by which command."""
    report: dict[str, Any] = origin("bench_engine.py", parser(), options)
    report["jax"] = version("jax")

    def show(name: str, row: dict[str, Any]) -> None:
        print(f"{name}: " + ", ".join(f"{key} {_number(value)}" for key, value in row.items()), flush=True)
        save(report, options.json)  # a run that is cut off leaves what it has

    if "start" in wanted:
        shape = ["--shape", options.shape, "--weights", options.weights, "--quant-policy", str(options.quant_policy)]
        shape += ["--concurrency", ",".join(map(str, options.concurrency)), "--prompt", str(options.prompt)]
        shape += ["--new", str(options.new), "--prefill", ",".join(map(str, options.prefill))]
        shape += [
            "--cache-max-entry-count",
            str(options.cache_max_entry_count),
            "--group-size",
            str(options.group_size),
            "--lm-head-bits",
            str(options.lm_head_bits),
        ]
        report["device"], report["start"] = cold_and_warm(Path(__file__), shape)
        for row in report["start"]:
            show("start", row)
    if wanted == ["start"]:
        return report
    engine, phases = build(options)
    if "first-token" in wanted:
        begun = time.perf_counter()
        measure.prefill(engine, min(options.prefill), seed=options.seed, repeats=0)
        first = time.perf_counter() - begun
        report["first-token"] = {**phases, "first token": first, "all": process_age()}
        show("start", report["first-token"])
    device, memory = jax.devices()[0], engine.memory
    report["device"] = device.device_kind
    report["memory"] = {
        "weights GB": memory.weight_bytes / 1e9,
        "pages GB": memory.pool_bytes / 1e9,
        "tokens": memory.tokens,
    }
    print(
        f"{device.device_kind}, jax {version('jax')}, {options.shape} {options.weights}, KV {options.quant_policy or 'plain'}"
    )
    show("memory", report["memory"])
    if "prefill" in wanted:
        report["prefill"] = []
        for length in options.prefill:
            row = measure.prefill(engine, length, seed=options.seed + 7, repeats=5 * options.repeats)
            report["prefill"].append(row)
            show("prefill", row)
    if "load" in wanted:
        report["load"] = []
        prompt, new = load_lengths(options)
        for concurrency in options.load_concurrency or options.concurrency:
            requests = jobs(
                options.lengths, options.requests, prompt=prompt, new=new,
                vocabulary=engine.config.vocab_size, seed=options.seed + concurrency,
            )  # fmt: skip
            report["load"].append(measure.load(engine, requests, concurrency))
            show("load", report["load"][-1])
    if "stall" in wanted:
        streams = max(1, max(options.concurrency) - 1)
        row = measure.stall(
            engine,
            streams,
            long=max(options.prefill),
            every=max(8, options.new // 8),
            new=options.new,
            seed=options.seed,
        )
        report["stall"] = row
        show("stall", row)
    if "mixed" in wanted:
        report["mixed"] = mixed_load(
            engine, count=options.requests, long=max(options.prefill), new=options.new, seed=options.seed + 3,
            rate=options.request_rate,
        )  # fmt: skip
        for row in report["mixed"]:
            show("mixed", row)
    if "decode" in wanted:
        report["decode"] = []
        for batch in options.concurrency:
            rows = [
                measure.decode(
                    engine, batch, prompt=options.prompt, new=options.new, seed=options.seed + 100 * batch + repeat,
                    trace=(lambda: jax.profiler.trace(options.trace)) if options.trace else nullcontext,
                )
                for repeat in range(options.repeats)
            ]  # fmt: skip
            report["decode"].append(max(rows, key=lambda row: row["decode tokens/s"]))
            show("decode", report["decode"][-1])
    if options.num_speculative_tokens:
        report["drafts"] = {"drafted": engine.drafted_tokens, "accepted": engine.accepted_tokens}
        show("drafts", report["drafts"])
    report["compile misses"] = engine.executor.compile_misses
    return report


def save(report: dict[str, Any], path: Path | None) -> None:
    """Write what is known so far."""
    if path is not None:
        path.write_text(json.dumps(report, indent=1))


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = parser().parse_args(arguments)
    wanted = options.measure.split(",")
    if unknown := set(wanted) - set(MEASURES):
        print(f"error: --measure {','.join(sorted(unknown))} must be among {', '.join(MEASURES)}", file=sys.stderr)
        return 1
    if options.device_memory is not None:
        try:
            limit_memory(options.device_memory)
        except ValueError as problem:
            print(f"error: {problem}", file=sys.stderr)
            return 1
    save(run(options, wanted), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
