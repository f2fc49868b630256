"""``jaxdeploy compile``: a start that only fills the compile cache, so that the next one is quick."""

import sys
import time
from typing import Annotated

import typer

from jaxdeploy.cli import options
from jaxdeploy.cli.options import DEFAULTS

app = typer.Typer(add_completion=False)


@app.command()
def compile_model(
    model: options.Model = None,
    session_len: options.SessionLen = DEFAULTS.session_len,
    cache_max_entry_count: options.CacheMaxEntryCount = options.DEFAULT_ENTRY_COUNT,
    cache_block_seq_len: options.CacheBlockSeqLen = DEFAULTS.cache_block_seq_len,
    quant_policy: options.QuantPolicy = DEFAULTS.quant_policy,
    kv_rotation: options.KvRotation = DEFAULTS.kv_rotation,
    lm_head_bits: options.LmHeadBits = DEFAULTS.lm_head_bits,
    model_format: options.ModelFormat = DEFAULTS.model_format,
    dtype: options.Dtype = DEFAULTS.dtype,
    tp: options.Tp = DEFAULTS.tp,
    max_batch_size: options.MaxBatchSize = DEFAULTS.max_batch_size,
    max_prefill_token_num: options.MaxPrefillTokenNum = DEFAULTS.max_prefill_token_num,
    num_speculative_tokens: options.NumSpeculativeTokens = DEFAULTS.num_speculative_tokens,
    compile_cache: options.CompileCache = DEFAULTS.compile_cache,
    chat: Annotated[
        bool, typer.Option("--chat", help="For `jaxdeploy chat`, which runs one answer at a time, not for a server.")
    ] = False,
) -> None:
    """Compile everything that a model needs here and keep it for the next start.

    Give the options that the server will get: shapes depend on them, and on the GPU's memory. A container whose image was built
    with the cache in it (--compile-cache FOLDER) starts warm.
    """
    engine_options = options.engine_config(
        dtype=dtype,
        model_format=model_format,
        tp=tp,
        session_len=session_len,
        max_batch_size=1 if chat else max_batch_size,
        cache_max_entry_count=cache_max_entry_count,
        cache_block_seq_len=cache_block_seq_len,
        quant_policy=quant_policy,
        kv_rotation=kv_rotation,
        lm_head_bits=lm_head_bits,
        max_prefill_token_num=max_prefill_token_num,
        num_speculative_tokens=num_speculative_tokens,
        compile_cache=compile_cache,
    )
    begun = time.perf_counter()
    # Here and not above: bad options are refused, and help is shown, without waiting for jax.
    from jaxdeploy.cli.compile_cache import with_compile_cache
    from jaxdeploy.cli.memory_line import memory_line
    from jaxdeploy.cli.progress_bars import ProgressBars
    from jaxdeploy.errors import ConfigError
    from jaxdeploy.loading import load_engine

    engine_options = with_compile_cache(engine_options)
    if not engine_options.compile_cache:
        raise ConfigError("--compile-cache is empty, which turns the cache off; name a folder, or leave the option out")
    with ProgressBars() as progress:
        loaded = load_engine(model, engine_options, progress=progress)
    phases, memory = loaded.engine.executor.start_seconds, loaded.engine.memory
    loaded.close()
    seconds = time.perf_counter() - begun
    phases = {"imports and weights": seconds - sum(phases.values()), **phases}
    print(memory_line(memory), file=sys.stderr)
    print(", ".join(f"{name} {taken:.1f} s" for name, taken in phases.items()), file=sys.stderr)
    print(engine_options.compile_cache)
