"""``jaxdeploy lite``: measure and compress models."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxdeploy.cli import quantize
from jaxdeploy.cli.command_group import CommandGroup
from jaxdeploy.cli.option_group import with_options
from jaxdeploy.cli.options import EngineOptions
from jaxdeploy.config.engine import QUANT_POLICIES
from jaxdeploy.errors import ConfigError

app = typer.Typer(cls=CommandGroup, add_completion=False, no_args_is_help=True)
app.add_typer(quantize.app)

COLUMNS = ("model", "quant_policy", "perplexity", "nll_per_token", "standard_error", "tokens", "seconds")


@app.callback()
def lite() -> None:
    """Measure and compress models."""


@app.command()
@with_options(
    "engine",
    EngineOptions(max_batch_size=1),
    only=["kv_rotation", "lm_head_bits", "model_format", "dtype", "tp", "cache_block_seq_len", "compile_cache"],
)
def perplexity(
    text: Annotated[
        Path, typer.Option("--text", exists=True, dir_okay=False, help="UTF-8 text to predict.", show_default=False)
    ],
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL", help="Checkpoints to compare. Without one: the demo model.", show_default=False
        ),
    ] = None,
    quant_policy: Annotated[
        list[int] | None,
        typer.Option(
            "--quant-policy",
            metavar="|".join(map(str, QUANT_POLICIES)),
            help="Bits of keys and values in the KV cache; repeat it to compare. Default: 0.",
            show_default=False,
        ),
    ] = None,
    ctx: Annotated[int, typer.Option("--ctx", help="Tokens of a window that is predicted at once.")] = 1024,
    stride: Annotated[
        int | None, typer.Option("--stride", help="Tokens from one window to the next. Default: --ctx.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="Stop after this many tokens. Default: the whole text.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
    *,
    engine: EngineOptions,
) -> None:
    """Perplexity of models on a text, one row per model and --quant-policy.

    Every row but the first is compared with the first, window by window: do they differ beyond noise?
    """
    configs = {
        policy: replace(engine, quant_policy=policy, kv_rotation=engine.kv_rotation if policy else None).config()
        for policy in quant_policy or [engine.quant_policy]
    }
    content = read_text(text)
    # Here and not above: bad options are refused, and help is shown, without waiting for jax.
    from jaxdeploy.cli.compile_cache import with_compile_cache
    from jaxdeploy.cli.progress_bars import ProgressBars
    from jaxdeploy.lite.perplexity import evaluate_perplexity

    rows = []
    for model in models or [None]:
        for policy, config in configs.items():
            with ProgressBars() as progress:
                result = evaluate_perplexity(
                    model,
                    content,
                    with_compile_cache(config),
                    window=ctx,
                    stride=stride,
                    max_tokens=max_tokens,
                    progress=progress,
                )
            rows.append({"model": model or "demo", "quant_policy": policy, **asdict(result)})
    for row in rows[1:]:
        row["against_first"] = against(rows[0], row)
    print(to_json(rows) if as_json else "\n".join([*table_lines(rows), *comparison_lines(rows)]))


def against(first: dict[str, Any], row: dict[str, Any]) -> dict[str, Any] | None:
    """``row`` compared with ``first``; None if their windows are not the same tokens."""
    from jaxdeploy.lite.comparison import compare_windows

    if row["window_tokens"] != first["window_tokens"]:
        return None
    found = compare_windows(first["window_nll"], row["window_nll"], row["window_tokens"])
    return {**asdict(found), "differs": found.differs, "sentence": found.sentence()}


def comparison_lines(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each row but the first."""
    if len(rows) < 2:
        return []
    lines = ["", f"against {_row_name(rows[0])}:"]
    for row in rows[1:]:
        found = row["against_first"]
        said = "not comparable, the tokenizers cut the text differently" if found is None else found["sentence"]
        lines.append(f"  {_row_name(row)}: {said}")
    return lines


def _row_name(row: dict[str, Any]) -> str:
    return f"{row['model']} with quant policy {row['quant_policy']}"


def to_json(rows: list[dict[str, Any]]) -> str:
    """``rows`` as a JSON list. JSON has no NaN: the standard error of a single window becomes null."""
    return json.dumps([_known(row) for row in rows], indent=2, allow_nan=False)


def _known(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _known(value) if isinstance(value, dict) else None if value != value else value
        for name, value in row.items()
    }


def read_text(path: Path) -> str:
    """The file's text.

    Raises:
        ConfigError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--text {path} must be UTF-8 text: {error}") from error


def table_lines(rows: list[dict[str, Any]]) -> list[str]:
    """``rows`` as lines of aligned columns, below a header."""
    table = [[column.replace("_", " ") for column in COLUMNS]]
    table += [
        [
            row["model"],
            str(row["quant_policy"]),
            f"{row['perplexity']:.3f}",
            f"{row['nll_per_token']:.4f}",
            f"{row['standard_error']:.4f}",
            f"{row['tokens']:,}",
            f"{row['seconds']:.1f}",
        ]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in table) for column in range(len(COLUMNS))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]
