"""Measure a server that speaks OpenAI's API: time to first token, between tokens, to the end, and tokens per second.

    python scripts/bench_serving.py --base-url http://127.0.0.1:23333/v1 --concurrency 1,8,64 --input-len 512 --output-len 128

Any server will do; needs nothing but Python. Numbers are saved as JSON and drawn as SVG beside it (``--output``).
"""

import argparse
import asyncio
import json
import platform
import random
import sys
import time
from pathlib import Path
from typing import Any

from benchmark_report.origin import origin
from serving_bench.chart import chart
from serving_bench.http_stream import Answer, StreamClient
from serving_bench.report import summary, table
from serving_bench.workload import Job, dataset_jobs, random_jobs, request_body

PATHS = {"chat": "/chat/completions", "completions": "/completions"}


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = parser().parse_args(arguments)
    try:
        results = asyncio.run(bench(options))
    except ValueError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print(table(results))
    if options.output is not None:
        save(options, results)
    return 1 if any(result["failed"] for result in results) else 0


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--base-url", default="http://127.0.0.1:23333/v1", help="up to and including /v1")
    add("--model", help="default: the first one that the server lists")
    add("--api-key", default="", help="sent as a bearer token")
    add("--endpoint", choices=PATHS, default="chat")
    add("--concurrency", type=_counts, default=[1, 8, 64], metavar="N,N,..", help="clients at once; one run each")
    add("--num-prompts", type=_count, help="requests of each run; default: 4 for each client, at least 16")
    add("--input-len", type=_count, default=256, help="words of a random prompt, about a token each")
    add("--output-len", type=_count, help="tokens of an answer; default 128, or as long as the dataset's answers")
    add("--dataset", type=Path, help="ShareGPT-like JSON to take prompts from, instead of random ones")
    add("--request-rate", type=float, help="requests per second, at random times; default: as soon as a client is free")
    add("--allow-eos", action="store_true", help="let answers end by themselves (for servers that refuse ignore_eos)")
    add("--warmup", type=int, default=2, help="requests before the first run that count nothing")
    add("--seed", type=int, default=0, help="of prompts and arrival times")
    add("--title", help="of the picture")
    add("--hardware", help="what the server runs on, for the report: GPU and jax version")
    add("--output", type=Path, help="where to save the numbers as JSON, and a picture beside it with the suffix .svg")
    return made


async def bench(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One run for each concurrency.

    Raises:
        ValueError: a bad option, or nothing was answered.
    """
    client = StreamClient(options.base_url, options.api_key)
    try:
        options.model = options.model or await first_model(client)
        await run(client, options, jobs_of(options, options.warmup), 1, None)
        results = []
        for concurrency in options.concurrency:
            jobs = jobs_of(options, options.num_prompts or max(4 * concurrency, 16))
            answers = await run(client, options, jobs, concurrency, options.request_rate)
            results.append(summary(concurrency, answers))
            print(f"{concurrency} clients: {results[-1]['tokens_per_second']:.0f} tokens/s", file=sys.stderr)
        return results
    finally:
        await client.close()


def jobs_of(options: argparse.Namespace, count: int) -> list[Job]:
    """The requests of one run; the same in every run."""
    if options.dataset is not None:
        return dataset_jobs(options.dataset, count, options.output_len, options.seed)
    return random_jobs(count, options.input_len, options.output_len or 128, options.seed)


async def first_model(client: StreamClient) -> str:
    """What the server calls its first model.

    Raises:
        ValueError: it doesn't say.
    """
    answer = await client.get("/models")
    if answer.error:
        raise ValueError(f"can't list the models: {answer.error}; is --base-url right?")
    return json.loads(answer.body)["data"][0]["id"]


async def run(
    client: StreamClient, options: argparse.Namespace, jobs: list[Job], concurrency: int, rate: float | None
) -> list[Answer]:
    """All jobs, at most ``concurrency`` at a time; with a rate, each begins at its own moment of a Poisson process."""
    rng, moments, at = random.Random(options.seed), [], 0.0
    for _ in jobs:
        at += rng.expovariate(rate) if rate else 0.0
        moments.append(at)
    waiting = iter(zip(jobs, moments, strict=True))
    begin = time.perf_counter()
    answers = []

    async def work() -> None:
        for job, moment in waiting:
            await asyncio.sleep(max(begin + moment - time.perf_counter(), 0))
            body = request_body(job, options.model, options.endpoint, not options.allow_eos)
            answers.append(await client.post(PATHS[options.endpoint], body))

    await asyncio.gather(*(work() for _ in range(min(concurrency, len(jobs)))))
    return answers


def save(options: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """Write the JSON and the picture."""
    record = {
        **origin("bench_serving.py", parser(), options),
        "hardware": options.hardware,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "results": results,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    picture = options.output.with_suffix(".svg")
    picture.write_text(chart(results, options.title or f"{options.model}, {options.endpoint}"), encoding="utf-8")
    print(f"saved {options.output} and {picture}", file=sys.stderr)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def _counts(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
