"""Convert a Hugging Face checkpoint to a sharded Orbax checkpoint that loads straight into the stacked layout, or back.

    python scripts/convert_hf.py SRC DST --format orbax
    python scripts/convert_hf.py SRC DST --format hf

Both ways are exact to the bit, packed int4 weights included. The weights pass through the host's memory; no GPU is used.
"""

import os
import shutil
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

WEIGHT_PATTERNS = (
    "*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack",
    "*.onnx", "*.gguf",
)  # fmt: skip


class Format(StrEnum):
    """What to write."""

    ORBAX = "orbax"
    HF = "hf"


def convert(source: Path, destination: Path, target: Format, *, force: bool, console: Console) -> None:
    """Convert ``source``; ``destination`` appears only when it is complete.

    Raises:
        CheckpointError: a checkpoint that can't be read, or one that is in the target format already.
        ConfigError: a destination that is in the way.
    """
    _check_destination(source, destination, force)
    # Here, for they import jax, which takes seconds.
    from jaxdeploy.errors import CheckpointError
    from jaxdeploy.weights.checkpoint import open_checkpoint
    from jaxdeploy.weights.loader import load_parameters

    checkpoint = open_checkpoint(source)
    if checkpoint.kind == "gguf":
        raise CheckpointError(f"{source}: GGUF files are not converted; jaxdeploy reads them as they are")
    if checkpoint.kind == target.value:
        raise CheckpointError(f"{source}: is in the format {target.value!r} already")
    work = destination.absolute().parent / f".{destination.absolute().name}.{os.getpid()}.partial"
    work.mkdir(parents=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(True), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console) as bar:
            read = bar.add_task("read", total=None)
            write = bar.add_task("write", total=None)
            params = load_parameters(checkpoint, None, progress=lambda n, of: bar.update(read, completed=n, total=of))
            if target is Format.ORBAX:
                _write_orbax(work, params, checkpoint)
            else:
                _write_hf(work, params, checkpoint, bar, write)
            total = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
            bar.update(write, completed=total, total=total)
        _copy_other_files(checkpoint.path, work)
        checkpoint.close()
        _publish(work, destination)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_destination(source: Path, destination: Path, force: bool) -> None:
    from jaxdeploy.errors import ConfigError

    here, there = source.resolve(), destination.resolve()
    if here == there or here.is_relative_to(there) or there.is_relative_to(here):
        raise ConfigError(f"{destination} and {source} overlap; choose another DST")
    if destination.exists() and not destination.is_dir():
        raise ConfigError(f"{destination} is a file; DST must be a folder")
    if not destination.exists() or not any(destination.iterdir()):
        return
    if not force:
        raise ConfigError(f"{destination} is not empty; choose another DST, or --force to replace it")
    if not (destination / "config.json").is_file():
        raise ConfigError(f"{destination} is no model's folder (it has no config.json), so --force does not replace it")


def _write_orbax(work: Path, params: dict, checkpoint) -> None:
    from jaxdeploy.weights.orbax_store import save_parameters

    save_parameters(work, params, checkpoint)


def _write_hf(work: Path, params: dict, checkpoint, bar: Progress, task) -> None:
    import jax

    from jaxdeploy.weights.hf_export import export_tensors
    from jaxdeploy.weights.safetensors_writer import write_safetensors

    bar.update(task, total=sum(array.nbytes for array in jax.tree.leaves(params)))

    def counted():
        for name, array in export_tensors(params, checkpoint):
            yield name, array
            bar.advance(task, array.nbytes)

    write_safetensors(work, counted())


def _copy_other_files(source: Path, work: Path) -> None:
    """The tokenizer, the chat template, generation_config.json, licence and model code."""
    for file in sorted(source.iterdir()):
        is_weights = any(file.match(pattern) for pattern in WEIGHT_PATTERNS)
        if file.is_file() and not is_weights and file.name != "jaxdeploy.json" and not file.name.startswith("."):
            shutil.copyfile(file, work / file.name)


def _publish(work: Path, destination: Path) -> None:
    if destination.exists():
        old = work.with_suffix(".old")
        destination.rename(old)
        work.rename(destination)
        shutil.rmtree(old)
    else:
        work.rename(destination)


def main(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of the checkpoint to convert.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write.")],
    target: Annotated[Format, typer.Option("--format", help="orbax: stacked layout; hf: Hugging Face safetensors.")],
    force: Annotated[bool, typer.Option("--force", help="Replace DST if it is a model's folder.")] = False,
) -> None:
    """Convert a Hugging Face checkpoint to Orbax, or back, exact to the bit."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from jaxdeploy.errors import UserError

    console = Console(stderr=True)
    try:
        convert(source, destination, target, force=force, console=console)
    except UserError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    console.print(f"wrote {destination}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
