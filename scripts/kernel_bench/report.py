"""Rows of a benchmark: printed as they come, kept as JSON, written as a table."""

import json
from pathlib import Path
from typing import Any


class Row(dict[str, Any]):
    """Columns by name, in order."""

    def __str__(self) -> str:
        return ", ".join(f"{name} {_text(value)}" for name, value in self.items())


def show(row: Row) -> None:
    """Print a row at once."""
    print(row, flush=True)


def table(rows: list[Row]) -> str:
    """Markdown."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_text(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def save(rows: list[Row], path: Path, **about: Any) -> None:
    """JSON: what it was measured on, then the rows."""
    path.write_text(json.dumps({**about, "rows": rows}, indent=1, default=str), encoding="utf-8")


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.2e}" if abs(value) < 0.01 else f"{value:,.1f}"
