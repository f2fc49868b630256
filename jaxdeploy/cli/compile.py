"""``jaxdeploy compile``: a start that only fills the compile cache, so that the next one is quick."""

import sys
import time
from dataclasses import replace
from typing import Annotated

import typer

from jaxdeploy.cli.option_group import with_options
from jaxdeploy.cli.options import EngineOptions, Model

app = typer.Typer(add_completion=False)


@app.command()
@with_options("engine", EngineOptions(), without=["enable_prefix_caching", "num_tokens_per_iter"])
def compile_model(
    model: Model = None,
    *,
    engine: EngineOptions,
    chat: Annotated[
        bool, typer.Option("--chat", help="For `jaxdeploy chat`, which runs one answer at a time, not for a server.")
    ] = False,
) -> None:
    """Compile everything that a model needs here and keep it for the next start.

    Give the options that the server will get: shapes depend on them, and on the GPU's memory. A container whose image was built
    with the cache in it (--compile-cache FOLDER) starts warm.
    """
    config = (replace(engine, max_batch_size=1) if chat else engine).config()
    begun = time.perf_counter()
    # Here and not above: bad options are refused, and help is shown, without waiting for jax.
    from jaxdeploy.cli.compile_cache import with_compile_cache
    from jaxdeploy.cli.memory_line import memory_line
    from jaxdeploy.cli.progress_bars import ProgressBars
    from jaxdeploy.errors import ConfigError
    from jaxdeploy.loading import load_engine

    config = with_compile_cache(config)
    if not config.compile_cache:
        raise ConfigError("--compile-cache is empty, which turns the cache off; name a folder, or leave the option out")
    with ProgressBars() as progress:
        loaded = load_engine(model, config, progress=progress)
    phases, memory = loaded.engine.executor.start_seconds, loaded.engine.memory
    loaded.close()
    seconds = time.perf_counter() - begun
    phases = {"imports and weights": seconds - sum(phases.values()), **phases}
    print(memory_line(memory), file=sys.stderr)
    print(", ".join(f"{name} {taken:.1f} s" for name, taken in phases.items()), file=sys.stderr)
    print(config.compile_cache)
