"""Fuzzed requests for an engine, many or for long: does each end as it must, does nothing compile, does memory stay?

    python scripts/soak_engine.py --requests 10000                  # a tiny random model, in several set-ups
    python scripts/soak_engine.py --minutes 30 --model demo         # the embedded demo model behind its engine thread

Requests differ in length, sampling, penalties, log-probabilities, stop texts, grammars and number of answers; some begin alike,
some clients go away, some ask again what was asked before, and the cache is too small for all. The exit status is 1 if any answer
is not what its options allow, a program was compiled, pages or places are missing at the end, or memory grew by more than
--most-growth MiB (from the second fifth of the run to the last; not looked at below --requests 1000 or --minutes 1).
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxdeploy import runtime

# isort: split
import jax
from benchmark_report.origin import origin
from engine_bench.byte_tokenizer import BYTES, ByteTokenizer
from engine_bench.fuzz import Fuzzer
from engine_bench.shapes import model_config
from engine_bench.soak import Soak, Stepper, Threaded, left_behind

from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.config.model import ModelConfig
from jaxdeploy.engine.engine import Engine
from jaxdeploy.engine.limits import Limits
from jaxdeploy.engine.runner import EngineRunner
from jaxdeploy.grammar.compiler import GrammarCompiler
from jaxdeploy.loading import load_engine
from jaxdeploy.model.decoder import random_parameters

VOCABULARY = 288
# Pages of 8 tokens, 40 of them: four sequences of up to 256 tokens do not fit, so some are preempted.
_TINY = EngineConfig(
    dtype="float32", max_batch_size=4, session_len=256, cache_block_seq_len=8, cache_max_entry_count=40,
    max_prefill_token_num=64, num_tokens_per_iter=16, seed=0,
)  # fmt: skip
SETUPS = {
    "plain": _TINY,
    "drafts": replace(_TINY, num_speculative_tokens=4),
    "int8": replace(_TINY, quant_policy=8, num_speculative_tokens=2, max_batch_size=6, num_tokens_per_iter=None),
    "int4, no prefix caching": replace(_TINY, quant_policy=4, kv_rotation=False, enable_prefix_caching=False),
}
"""Of the tiny model."""
# 40 pages of 16 tokens for four sequences of up to 256.
_DEMO = EngineConfig(
    max_batch_size=4, session_len=256, cache_block_seq_len=16, cache_max_entry_count=40,
    max_prefill_token_num=128, num_tokens_per_iter=32, num_speculative_tokens=3, seed=0,
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="tiny", help="tiny (random weights), demo, or a checkpoint")
    options.add_argument("--requests", type=int, default=10_000, help="in all, over the set-ups of the tiny model")
    options.add_argument("--minutes", type=float, help="go on for so long instead")
    options.add_argument("--setup", choices=SETUPS, help="only this one of the tiny model's set-ups")
    options.add_argument("--thread", action="store_true", help="the tiny model, too, behind an engine thread")
    options.add_argument("--most-growth", type=float, default=32.0, help="MiB; default 32")
    options.add_argument("--every", type=float, default=30.0, help="seconds between lines")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--compile-cache", help="folder of compiled programs")
    options.add_argument("--json", type=Path, help="also write the numbers here")
    return options


def tiny_model() -> tuple[ModelConfig, dict]:
    """A random model that repeats itself now and then, and whose best tokens are far enough apart that rounding decides nothing."""
    config = replace(model_config("tiny", "fp32"), vocab_size=VOCABULARY)
    params = jax.tree.map(
        lambda leaf: leaf * 2 if leaf.ndim > 2 or leaf.shape[0] == VOCABULARY else leaf,
        random_parameters(config, "float32"),
    )
    return config, jax.device_put(params, jax.devices()[0])


def engines(options: argparse.Namespace) -> Iterator[tuple[str, Engine, EngineRunner | None, int]]:
    """Each set-up's name, engine, the thread it runs on if it has one, and the tokens that prompts are made of."""
    if options.model != "tiny":
        loaded = load_engine(None if options.model == "demo" else options.model, _DEMO)
        yield options.model, loaded.engine, loaded.runner, loaded.tokenizer.vocab_size
        return
    runtime.set_compile_cache(options.compile_cache)
    for name in [options.setup] if options.setup else SETUPS:
        config, params = tiny_model()
        limits = Limits.resolve(SETUPS[name], config, platform=jax.devices()[0].platform)
        engine = Engine(config, params, ByteTokenizer(VOCABULARY), SETUPS[name], limits)
        yield name, engine, EngineRunner(engine) if options.thread else None, BYTES


def soak(
    options: argparse.Namespace, engine: Engine, runner: EngineRunner | None, vocabulary: int, share: float
) -> tuple[dict[str, Any], list[str]]:
    """Keep one engine busy for its share of the run; returns what was seen, and what was wrong."""
    grammars = GrammarCompiler(engine.tokenizer, engine.config.vocab_size, engine.end_ids)
    fuzzer = Fuzzer(vocabulary, engine.session_len, 24, grammars, seed=options.seed)
    deadline = time.perf_counter() + 60 * share * (options.minutes or 0)

    def goes_on(made: int) -> bool:
        return time.perf_counter() < deadline if options.minutes else made < share * options.requests

    driver = Threaded(runner) if runner else Stepper(engine)
    run = Soak(engine, driver, fuzzer, goes_on=goes_on, tell=lambda line: print(line, flush=True), every=options.every)
    seen = run.run()
    wrong = run.ledger.problems
    if runner:
        runner.stop()
    grammars.close()
    if misses := engine.executor.compile_misses:
        wrong.append(f"{misses} programs were compiled")
    if not wrong:
        wrong += left_behind(engine)
    long = (options.minutes or 0) >= 1 or (not options.minutes and options.requests >= 1000)
    if long and not seen["growth MiB"] <= options.most_growth:
        wrong.append(f"memory grew by {seen['growth MiB']:.1f} MiB; --most-growth is {options.most_growth:g}")
    return seen, wrong


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = parser().parse_args(arguments)
    report: dict[str, Any] = {
        **origin("soak_engine.py", parser(), options),
        "device": jax.devices()[0].device_kind,
        "jax": version("jax"),
        "soak": [],
    }
    failed = False
    share = 1 / (len(SETUPS) if options.model == "tiny" and not options.setup else 1)
    for name, engine, runner, vocabulary in engines(options):
        print(f"{options.model}, {name}:", flush=True)
        seen, wrong = soak(options, engine, runner, vocabulary, share)
        report["soak"].append({"set-up": name, **seen, "wrong": wrong})
        for key, value in seen.items():
            print(f"  {key}: {value:,.1f}" if isinstance(value, float) else f"  {key}: {value}")
        for problem in wrong:
            print(f"  WRONG: {problem}")
        failed |= bool(wrong)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
