"""The text of each section: what ran, by which command, and its numbers."""

from collections.abc import Iterable
from typing import Any

from benchmark_report.markdown import number, table
from benchmark_report.records import Record

ENGINE_TABLES = {
    "decode": "Decode of a full batch",
    "prefill": "One prompt on an idle engine",
    "load": "A stream of requests, so many at a time",
    "stall": "Running answers while long prompts arrive",
    "mixed": "Short and long prompts arriving at random",
    "start": "Process start to first token, seconds",
    "first-token": "Process start to first token, seconds",
    "drafts": "Drafts",
}
"""What ``bench_engine.py`` measures, in the order of the report."""
_SERVING = (
    ("clients", "concurrency"), ("requests", "requests"), ("failed", "failed"), ("requests/s", "requests_per_second"),
    ("tokens/s", "tokens_per_second"),
)  # fmt: skip
_SOAK_LEFT_OUT = ("memory (s, requests, MiB)", "TTFT max ms", "ITL max ms", "refused", "wrong", "reasons", "steps")


def engine_section(records: list[Record], pictures: Iterable[str]) -> str:
    """Runs of ``bench_engine.py``: a part for each model on each device, its runs' rows together."""
    parts = []
    for (model, hardware), runs in grouped(records):
        parts.append(f"### {model}: {hardware}\n\n{_origins(runs)}")
        for name, title in ENGINE_TABLES.items():
            if rows := [row for run in runs for row in _rows(run.data.get(name))]:
                parts.append(f"{title}:\n\n{table(rows)}")
        notes = [_note(run.data) for run in runs if "memory" in run.data]
        parts.append("\n".join(dict.fromkeys(notes)))
    return "\n\n".join([*filter(None, parts), *pictures])


def serving_section(records: list[Record], pictures: Iterable[str]) -> str:
    """Runs of ``bench_serving.py``, times in milliseconds."""
    parts = []
    for (model, hardware), runs in grouped(records):
        rows = []
        for result in (result for run in runs for result in run.data["results"]):
            times = {
                f"{label} {p} ms": result[key][p]
                for label, key in (("TTFT", "ttft_ms"), ("ITL", "itl_ms"), ("E2E", "e2e_ms"))
                for p in ("p50", "p99")
            }
            rows.append({title: result[key] for title, key in _SERVING} | times)
        parts.append(f"### {model}: {hardware}\n\n{_origins(runs)}\n\n{table(rows)}")
    return "\n\n".join([*parts, *pictures])


def soak_section(records: list[Record], pictures: Iterable[str] = ()) -> str:
    """Runs of ``soak_engine.py``."""
    parts = []
    for (model, hardware), runs in grouped(records):
        rows = []
        for seen in (seen for run in runs for seen in run.data["soak"]):
            ended = ", ".join(f"{count:,} {reason}" for reason, count in sorted(seen["reasons"].items()))
            kept = {name: value for name, value in seen.items() if name not in _SOAK_LEFT_OUT}
            memory = [mib for *_, mib in seen["memory (s, requests, MiB)"]]
            spread = f"{min(memory):,.0f} to {max(memory):,.0f}"
            rows.append({**kept, "answers ended by": ended, "memory MiB": spread, "wrong": len(seen["wrong"])})
        # More columns than fit a page: set-ups side by side, a line for each number.
        turned = [
            {"": name, **{row["set-up"]: number(row.get(name, "")) for row in rows}}
            for name in rows[0]
            if name != "set-up"
        ]
        parts.append(f"### {model}: {hardware}\n\n{_origins(runs)}\n\n{table(turned)}")
    return "\n\n".join([*parts, *pictures])


def grouped(records: list[Record]) -> list[tuple[tuple[str, str], list[Record]]]:
    """Runs of the same model on the same hardware, in the order in which they first appear."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.model, record.hardware), []).append(record)
    return list(groups.items())


def _origins(runs: list[Record]) -> str:
    return "  \n".join(dict.fromkeys(run.origin for run in runs))


def _rows(found: Any) -> list[dict[str, Any]]:
    return [] if found is None else found if isinstance(found, list) else [found]


def _note(data: dict[str, Any]) -> str:
    memory = ", ".join(f"{name} {number(value)}" for name, value in data["memory"].items())
    return f"Memory: {memory}. Programs compiled after the start: {data.get('compile misses', 'not recorded')}."
