"""The files that the benchmarks wrote, sorted by what they tell of."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmark_report.origin import command

Kind = Literal["engine", "serving", "soak"]
SCRIPTS: dict[Kind, str] = {"engine": "bench_engine.py", "serving": "bench_serving.py", "soak": "soak_engine.py"}
_TELLING: dict[str, Kind] = {"soak": "soak", "results": "serving", "options": "engine"}
"""A key of each kind of file; the first one found tells."""


@dataclass(frozen=True)
class Record:
    """One run of one benchmark.

    Attributes:
        data: as it was written.
    """

    kind: Kind
    data: dict[str, Any]

    @property
    def hardware(self) -> str:
        """What it ran on, and with which JAX."""
        if self.kind == "serving":
            return self.data.get("hardware") or "hardware not recorded (--hardware)"
        return f"{self.data.get('device', 'device not recorded')}, jax {self.data.get('jax', 'not recorded')}"

    @property
    def origin(self) -> str:
        """The command, and the day where it is known."""
        said = self.data.get("command") or command(SCRIPTS[self.kind], self.data["options"])
        return f"`{said}`" + (f" ({self.data['date']})" if "date" in self.data else "")

    @property
    def model(self) -> str:
        """What was run: shape or name, weights, cache."""
        options = self.data["options"]
        if self.kind == "serving":
            return options.get("title") or f"{options['model']}, {options['endpoint']}"
        if self.kind == "soak":
            return options["model"]
        return f"{options['shape']}, {self.variant}"

    @property
    def variant(self) -> str:
        """How an engine's weights and cache are stored."""
        options = self.data["options"]
        kept = f"int{options['quant_policy']}" if options["quant_policy"] else "plain"
        return f"{options['weights']} weights, {kept} KV"


def read_records(files: Iterable[Path]) -> list[Record]:
    """All runs in these files; a file may hold several JSON objects, one after the other.

    Raises:
        ValueError: a file that no benchmark wrote.
    """
    return [Record(_kind(data, file), data) for file in files for data in _objects(file)]


def _objects(file: Path) -> Iterable[dict[str, Any]]:
    text, decoder, at = file.read_text(encoding="utf-8").strip(), json.JSONDecoder(), 0
    while at < len(text):
        try:
            found, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as problem:
            raise ValueError(f"{file} is not JSON: {problem}") from None
        if not isinstance(found, dict):
            raise ValueError(f"{file} holds {type(found).__name__}, not what a benchmark writes")
        yield found
        at += len(text[at:]) - len(text[at:].lstrip())


def _kind(data: dict[str, Any], file: Path) -> Kind:
    for key, kind in _TELLING.items():
        if key in data and "options" in data:
            return kind
    raise ValueError(f"{file} was written by none of {', '.join(SCRIPTS.values())} (keys: {', '.join(data)})")
