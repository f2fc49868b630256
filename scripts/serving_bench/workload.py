"""What is asked: random prompts of a given length, or the questions of a dataset."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

CHARACTERS_PER_TOKEN = 4
"""Of English text, for lengths of answers in a dataset; the server's usage has the true counts."""
WORDS = (
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "hand",
)
"""A token each in most vocabularies."""

Endpoint = Literal["chat", "completions"]


@dataclass(frozen=True, slots=True)
class Job:
    """One request: a prompt, and how many tokens are wanted."""

    prompt: str
    tokens: int


def random_jobs(count: int, input_len: int, output_len: int, seed: int) -> list[Job]:
    """Prompts of about ``input_len`` tokens, no two alike, so that no prefix is cached."""
    rng = random.Random(seed)
    return [Job(" ".join(rng.choices(WORDS, k=input_len)), output_len) for _ in range(count)]


def dataset_jobs(path: Path, count: int, output_len: int | None, seed: int) -> list[Job]:
    """First questions of conversations in ShareGPT's form.

    Args:
        path: JSON, ``[{"conversations": [{"from": "human", "value": ..}, {"from": "gpt", "value": ..}]}]``.
        output_len: tokens of every answer; None takes the length of the dataset's own answer.

    Raises:
        ValueError: no conversation is usable.
    """
    found = []
    for entry in json.loads(path.read_text(encoding="utf-8")):
        turns: Sequence[dict[str, Any]] = entry.get("conversations", ())
        if len(turns) >= 2 and turns[0].get("from") in ("human", "user") and turns[0].get("value"):
            answer = max(len(turns[1].get("value", "")) // CHARACTERS_PER_TOKEN, 1)
            found.append(Job(turns[0]["value"], output_len or answer))
    if not found:
        raise ValueError(f"{path} has no conversation that starts with a human's question")
    rng = random.Random(seed)
    rng.shuffle(found)
    return [found[i % len(found)] for i in range(count)]


def request_body(job: Job, model: str, endpoint: Endpoint, ignore_eos: bool) -> dict[str, Any]:
    """The JSON of a request, streamed, with its usage at the end."""
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": job.tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if ignore_eos:
        body["ignore_eos"] = True
    if endpoint == "chat":
        return {**body, "messages": [{"role": "user", "content": job.prompt}]}
    return {**body, "prompt": job.prompt}
