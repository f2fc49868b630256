"""``jaxdeploy check_env --plan``: what fits on a GPU, as a table."""

import json
import re
from pathlib import Path
from typing import Any

from jaxdeploy.cache.sizing import MARGIN_BYTES
from jaxdeploy.cli.memory_line import format_bytes
from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.config.model import ModelConfig
from jaxdeploy.engine.forecast import Forecast, forecast_table
from jaxdeploy.errors import ConfigError
from jaxdeploy.weights.checkpoint import CONFIG_FILE, open_checkpoint

_UNITS = {"": 1, "B": 1, "MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30, "M": 2**20, "G": 2**30}


def parse_bytes(text: str) -> int:
    """``"24GiB"``, ``"80 GB"`` or a number of bytes.

    Raises:
        ConfigError: it is none of these.
    """
    match = re.fullmatch(r"([0-9.]+)\s*([A-Za-z]*)", text.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or match[1].count(".") > 1 or match[1] == ".":
        raise ConfigError(f"--gpu-memory={text!r} must be a size such as 24GiB or 80GB")
    return int(float(match[1]) * unit)


def model_config(model: Path) -> ModelConfig:
    """The configuration of a checkpoint; of a Hugging Face one ``config.json`` is enough.

    Raises:
        ConfigError: it is not understood.
        CheckpointError: there is none.
    """
    file = model / CONFIG_FILE if model.is_dir() else model
    if file.name == CONFIG_FILE and file.is_file():
        return ModelConfig.from_hf(json.loads(file.read_text(encoding="utf-8")))
    checkpoint = open_checkpoint(model)
    checkpoint.close()
    return checkpoint.config


def table_rows(model: Path, options: EngineConfig, gpu_bytes: int) -> list[dict[str, Any]]:
    """The table as plain numbers, sizes in bytes."""
    return [_row(found) for found in forecast_table(model_config(model), options, gpu_bytes)]


def table_lines(rows: list[dict[str, Any]], gpu_bytes: int) -> list[str]:
    """The table as lines of aligned columns, below what it is about."""
    first = rows[0]
    head = (
        f"{format_bytes(gpu_bytes)}: weights, step buffers (estimated, {format_bytes(first['step_bytes'])}), sampler state "
        f"({format_bytes(first['state_bytes'])}) and a margin of {format_bytes(MARGIN_BYTES)} first, then the cache"
    )
    table = [["weights", "", "KV cache", "share of free", "size", "pages", "tokens"], *map(_cells, rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = [head]
    for first_cell, *cells in table:
        rest = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([first_cell.ljust(widths[0]), *rest]))
    return lines


def _cells(row: dict[str, Any]) -> list[str]:
    kind = [row["weights"], format_bytes(row["weight_bytes"]), f"{row['kv_bits']} bits", f"{row['share']:g}"]
    if not row["pages"]:
        return [*kind, "no room", "0", "0"]
    return [*kind, format_bytes(row["cache_bytes"]), f"{row['pages']:,}", f"{row['tokens']:,}"]


def _row(found: Forecast) -> dict[str, Any]:
    plan = found.plan
    return {
        "weights": found.weights,
        "weight_bytes": plan.weight_bytes,
        "kv_bits": found.kv_bits,
        "share": found.share,
        "step_bytes": plan.step_bytes,
        "state_bytes": plan.state_bytes,
        "cache_bytes": plan.pool_bytes,
        "pages": plan.num_pages,
        "tokens": plan.tokens,
    }
