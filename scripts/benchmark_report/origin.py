"""Where numbers come from: the command that asks for the same."""

import argparse
import shlex
from collections.abc import Container
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HIDDEN = frozenset({"json", "output", "compile_cache", "trace", "api_key"})
"""Options that change no number: where files are, and secrets."""


def origin(script: str, parser: argparse.ArgumentParser, options: argparse.Namespace) -> dict[str, Any]:
    """``command``, with the options that are not as by default, today's ``date`` (UTC) and all ``options`` but hidden ones."""
    shown = {
        name: value.name if isinstance(value, Path) else value
        for name, value in vars(options).items()
        if name not in HIDDEN
    }
    changed = {name: value for name, value in shown.items() if getattr(options, name) != parser.get_default(name)}
    return {"command": command(script, changed), "date": datetime.now(UTC).date().isoformat(), "options": shown}


def command(script: str, options: dict[str, Any], hidden: Container[str] = HIDDEN) -> str:
    """A command line.

    Args:
        script: its file name in ``scripts``.
        options: by their names in Python.
    """
    words = ["python", f"scripts/{script}"]
    for name, value in options.items():
        if name in hidden or value is None or value is False:
            continue
        words.append("--" + name.replace("_", "-"))
        if isinstance(value, list):
            words.append(",".join(map(str, value)))
        elif value is not True:
            words.append(str(value))
    return shlex.join(words)
