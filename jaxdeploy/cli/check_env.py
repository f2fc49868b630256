"""``jaxdeploy check_env``: what is installed and what can run here. Also what a bug report should hold."""

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxdeploy.cli.option_group import with_options
from jaxdeploy.cli.options import EngineOptions
from jaxdeploy.config.engine import EngineConfig
from jaxdeploy.demo import demo_model_path
from jaxdeploy.errors import ConfigError

PACKAGES = ("jaxdeploy", "jax", "jaxlib", "flax", "transformers", "orbax-checkpoint", "starlette")
CUDA_PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin")
IMPLEMENTATIONS = ("reference", "mosaic")

app = typer.Typer(add_completion=False)


def installed(package: str) -> str | None:
    """Version of an installed distribution, or None; nothing is imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe_devices() -> tuple[list[dict[str, Any]], str | None]:
    """JAX's devices with their memory in bytes (None where unknown), and the error if JAX found no backend."""
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:
        return [], str(error)
    described = []
    for device in devices:
        memory = device.memory_stats() or {}
        described.append(
            {
                "id": device.id,
                "platform": device.platform,
                "kind": device.device_kind,
                "compute_capability": getattr(device, "compute_capability", None),
                "memory_bytes": memory.get("bytes_limit"),
                "memory_used_bytes": memory.get("bytes_in_use"),
            }
        )
    return described, None


def describe_kernels() -> dict[str, list[str]]:
    """Implementations of each kernel: there is one folder per kernel, in it one file per implementation."""
    folders = (entry for entry in files("pallas_kernels").iterdir() if (entry / "api.py").is_file())
    return {
        folder.name: [name for name in IMPLEMENTATIONS if (folder / f"{name}.py").is_file()]
        for folder in sorted(folders, key=lambda folder: folder.name)
    }


def describe_demo_model() -> str | None:
    """Path of the demo model, or None if it is not installed."""
    try:
        return str(demo_model_path())
    except ConfigError:
        return None


def collect() -> dict[str, Any]:
    """Everything that ``check_env`` prints, ready for JSON."""
    # Before JAX looks for devices: it keeps JAX from taking the GPU's memory from a server that runs there.
    from jaxdeploy.cli.compile_cache import compile_cache_folder

    devices, device_error = describe_devices()
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "host_memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "packages": {name: installed(name) for name in PACKAGES},
        "cuda_plugins": {name: installed(name) for name in CUDA_PLUGINS},
        "devices": devices,
        "device_error": device_error,
        "kernels": describe_kernels(),
        "compile_cache": compile_cache_folder(),
        "demo_model": describe_demo_model(),
    }


def report_lines(report: dict[str, Any]) -> list[str]:
    """``report`` as aligned ``name  value`` lines."""
    from jaxdeploy.cli.memory_line import format_bytes

    plugins = [f"{name} {found}" for name, found in report["cuda_plugins"].items() if found]
    rows = [
        ("python", report["python"]),
        ("system", f"{report['system']}, {report['cpus']} CPUs, {format_bytes(report['host_memory_bytes'])}"),
        *((name, found or "not installed") for name, found in report["packages"].items()),
        ("CUDA plugin", ", ".join(plugins) or "none; on a machine with an NVIDIA GPU: pip install jaxdeploy[cuda13]"),
    ]
    for device in report["devices"]:
        capability = f", compute capability {device['compute_capability']}" if device["compute_capability"] else ""
        limit, used = device["memory_bytes"], device["memory_used_bytes"]
        memory = f", {format_bytes(limit)} for JAX, {format_bytes(used or 0)} in use" if limit else ""
        rows.append((f"device {device['id']}", f"{device['platform']} {device['kind']}{capability}{memory}"))
    if report["device_error"]:
        rows.append(("devices", f"none: {report['device_error']}"))
    rows += [(f"kernel {name}", ", ".join(found) or "none") for name, found in report["kernels"].items()]
    rows += [
        ("compile cache", report["compile_cache"]),
        ("demo model", report["demo_model"] or "not installed; pip install jaxdeploy[demo]"),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def plan_report(model: Path, gpu_memory: str | None, options: EngineConfig, as_json: bool) -> str:
    """What ``check_env --plan`` prints.

    Raises:
        UserError: a model or a size that is not understood.
    """
    # Nothing of this needs a device, and a GPU's memory is left to whoever uses it.
    from jaxdeploy.cache.sizing import device_bytes
    from jaxdeploy.cli.compile_cache import compile_cache_folder  # noqa: F401  sets XLA's environment before jax starts
    from jaxdeploy.cli.memory_table import parse_bytes, table_lines, table_rows

    if gpu_memory is None:
        import jax

        gpu_bytes = device_bytes(jax.devices()[0])
    else:
        gpu_bytes = parse_bytes(gpu_memory)
    rows = table_rows(model, options, gpu_bytes)
    return json.dumps(rows, indent=2) if as_json else "\n".join(table_lines(rows, gpu_bytes))


@app.command()
@with_options(
    "engine", EngineOptions(), only=["session_len", "max_batch_size", "cache_block_seq_len", "max_prefill_token_num"]
)
def check_env(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            metavar="MODEL",
            help="Instead, show what fits on a GPU beside this model: weights and pages by precision and share. Takes a "
            "checkpoint, a GGUF file or a config.json.",
        ),
    ] = None,
    gpu_memory: Annotated[
        str | None,
        typer.Option("--gpu-memory", metavar="SIZE", help="For --plan: 24GiB, 80GB, ... Default: this machine's GPU."),
    ] = None,
    *,
    engine: EngineOptions,
) -> None:
    """Show versions, devices with their memory, kernels, the compilation cache and the demo model."""
    if plan is not None:
        print(plan_report(plan, gpu_memory, engine.config(), as_json))
        return
    report = collect()
    print(json.dumps(report, indent=2) if as_json else "\n".join(report_lines(report)))
