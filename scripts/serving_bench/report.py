"""From the bytes of many answers to the numbers that people compare."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from serving_bench.http_stream import Answer

PERCENTILES = (50, 95, 99)


@dataclass
class Timed:
    """One good answer, parsed.

    Attributes:
        ttft: seconds from the request to its first token.
        gaps: seconds between pieces of text.
        e2e: seconds to the last byte.
        prompt_tokens, tokens: by the server's own count; without one, pieces of text.
    """

    ttft: float
    gaps: list[float]
    e2e: float
    prompt_tokens: int
    tokens: int


def parse(answer: Answer) -> Timed | str:
    """Times and counts of an answer, or what was wrong with it."""
    if answer.error:
        return answer.error
    times: list[float] = []
    usage: dict[str, Any] = {}
    for when, data in events(answer.pieces):
        if data == b"[DONE]":
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            return f"error in the stream: {str(chunk['error'])[:300]}"
        usage = chunk.get("usage") or usage
        if any(_has_text(choice) for choice in chunk.get("choices", ())):
            times.append(when)
    if not times:
        return "the answer has no text"
    gaps = [later - earlier for earlier, later in pairwise(times)]
    tokens = usage.get("completion_tokens", len(times))
    return Timed(times[0] - answer.start, gaps, answer.end - answer.start, usage.get("prompt_tokens", 0), tokens)


def events(pieces: Iterable[tuple[float, bytes]]) -> Iterable[tuple[float, bytes]]:
    """Data of server-sent events, with the time at which each was complete."""
    pending = b""
    for when, piece in pieces:
        *whole, pending = (pending + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        for block in whole:
            for line in block.split(b"\n"):
                if line.startswith(b"data:"):
                    yield when, line[5:].strip()


def _has_text(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return bool(choice.get("text") or delta.get("content") or delta.get("reasoning_content") or delta.get("tool_calls"))


def summary(concurrency: int, answers: Sequence[Answer]) -> dict[str, Any]:
    """All numbers of one run; times in milliseconds.

    Raises:
        ValueError: not a single answer was good.
    """
    parsed = [parse(answer) for answer in answers]
    good = [item for item in parsed if isinstance(item, Timed)]
    errors = [item for item in parsed if isinstance(item, str)]
    if not good:
        raise ValueError(f"all {len(errors)} requests failed; the first: {errors[0]}")
    seconds = max(answer.end for answer in answers) - min(answer.start for answer in answers)
    tokens = sum(item.tokens for item in good)
    return {
        "concurrency": concurrency,
        "requests": len(good),
        "failed": len(errors),
        "first_error": errors[0] if errors else None,
        "seconds": seconds,
        "prompt_tokens": sum(item.prompt_tokens for item in good),
        "output_tokens": tokens,
        "requests_per_second": len(good) / seconds,
        "tokens_per_second": tokens / seconds,
        "ttft_ms": statistics([item.ttft for item in good]),
        "itl_ms": statistics([gap for item in good for gap in item.gaps]),
        "e2e_ms": statistics([item.e2e for item in good]),
    }


def statistics(seconds: Sequence[float]) -> dict[str, float]:
    """Mean and percentiles (nearest rank), in milliseconds; zeros if there is nothing to count."""
    values = sorted(1000 * value for value in seconds) or [0.0]
    ranks = {f"p{p}": values[max(math.ceil(p / 100 * len(values)) - 1, 0)] for p in PERCENTILES}
    return {"mean": sum(values) / len(values), **ranks}


def table(results: Sequence[dict[str, Any]]) -> str:
    """The results as text, a line for each concurrency."""
    names = ("mean", *(f"p{p}" for p in PERCENTILES))
    times = [(key, name) for key in ("ttft_ms", "itl_ms", "e2e_ms") for name in names]
    top = ["clients", "requests", "failed", "req/s", "tokens/s", *(f"{key[:-3].upper()} {name}" for key, name in times)]
    rows = [
        [
            str(result["concurrency"]),
            str(result["requests"]),
            str(result["failed"]),
            f"{result['requests_per_second']:.2f}",
            f"{result['tokens_per_second']:.0f}",
            *(f"{result[key][name]:.1f}" for key, name in times),
        ]
        for result in results
    ]
    widths = [max(len(row[i]) for row in [top, *rows]) for i in range(len(top))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [top, *rows]]
    return "\n".join([*lines, "(times in milliseconds)"])
