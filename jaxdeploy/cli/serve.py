"""``jaxdeploy serve``: a model behind HTTP."""

import sys
from typing import Annotated

import typer

from jaxdeploy.cli import options
from jaxdeploy.cli.command_group import CommandGroup
from jaxdeploy.cli.options import DEFAULTS
from serve.options import LOG_LEVELS, ServerOptions

app = typer.Typer(cls=CommandGroup, add_completion=False, no_args_is_help=True)
SERVER = ServerOptions()
_PANEL = "Server"


@app.callback()
def serve() -> None:
    """Serve a model."""


@app.command("api_server")
def api_server(
    model: options.Model = None,
    server_name: Annotated[
        str, typer.Option("--server-name", help="Address to listen on.", rich_help_panel=_PANEL)
    ] = SERVER.server_name,
    server_port: Annotated[
        int, typer.Option("--server-port", help="Port to listen on.", rich_help_panel=_PANEL)
    ] = SERVER.server_port,
    model_name: Annotated[
        str | None,
        typer.Option(
            "--model-name", help="What clients call the model. Default: its own name.", rich_help_panel=_PANEL
        ),
    ] = None,
    api_keys: Annotated[
        list[str] | None,
        typer.Option(
            "--api-keys",
            envvar="JAXDEPLOY_API_KEYS",
            help="Keys that let clients in; repeat it, or separate them by commas. Other users of the machine can read a "
            "command line: the environment variable is safer.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None,
    ssl_keyfile: Annotated[
        str | None, typer.Option("--ssl-keyfile", help="Private key for TLS (PEM).", rich_help_panel=_PANEL)
    ] = None,
    ssl_certfile: Annotated[
        str | None, typer.Option("--ssl-certfile", help="Certificate for TLS (PEM).", rich_help_panel=_PANEL)
    ] = None,
    allow_origins: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-origins",
            help="Web pages of these origins may call the server; repeat it, or separate them by commas. Default: *, any.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None,
    max_queue: Annotated[
        int,
        typer.Option(
            "--max-queue", help="Answers that may wait beyond a full batch; more get 429.", rich_help_panel=_PANEL
        ),
    ] = SERVER.max_queue,
    drain_seconds: Annotated[
        float,
        typer.Option("--drain-seconds", help="How long SIGTERM waits for running answers.", rich_help_panel=_PANEL),
    ] = SERVER.drain_seconds,
    generation_config: Annotated[
        str,
        typer.Option(
            "--generation-config",
            metavar="auto|none|FILE",
            help="Where default sampling options come from: the model's generation_config.json, nowhere, or another such "
            "file.",
            rich_help_panel=_PANEL,
        ),
    ] = SERVER.generation_config,
    tool_call_parser: Annotated[
        str | None,
        typer.Option(
            "--tool-call-parser", help="How the model writes tool calls. Default: by model.", rich_help_panel=_PANEL
        ),
    ] = None,
    reasoning_parser: Annotated[
        str | None,
        typer.Option(
            "--reasoning-parser",
            metavar="think|none",
            help="Part <think> blocks from answers. Default: by model.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    log_level: Annotated[
        str,
        typer.Option("--log-level", metavar="|".join(LOG_LEVELS), help="How much is logged.", rich_help_panel=_PANEL),
    ] = SERVER.log_level,
    max_log_len: Annotated[
        int | None,
        typer.Option(
            "--max-log-len",
            help="Characters of a prompt that level INFO logs; 0 logs none. Default: all.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    chat_template: options.ChatTemplate = None,
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
    enable_prefix_caching: options.EnablePrefixCaching = DEFAULTS.enable_prefix_caching,
    max_prefill_token_num: options.MaxPrefillTokenNum = DEFAULTS.max_prefill_token_num,
    num_tokens_per_iter: options.NumTokensPerIter = DEFAULTS.num_tokens_per_iter,
    num_speculative_tokens: options.NumSpeculativeTokens = DEFAULTS.num_speculative_tokens,
    compile_cache: options.CompileCache = DEFAULTS.compile_cache,
) -> None:
    """Serve a model by the OpenAI API.

    /health tells at once how far loading is. SIGTERM finishes what runs, then exits.
    """
    server = ServerOptions(
        server_name=server_name,
        server_port=server_port,
        model_name=model_name,
        api_keys=split_list(api_keys),
        ssl_keyfile=ssl_keyfile,
        ssl_certfile=ssl_certfile,
        allow_origins=split_list(allow_origins) or SERVER.allow_origins,
        max_queue=max_queue,
        max_log_len=max_log_len,
        log_level=log_level,
        generation_config=generation_config,
        drain_seconds=drain_seconds,
        tool_call_parser=tool_call_parser,
        reasoning_parser=reasoning_parser,
    )
    engine = options.engine_config(
        dtype=dtype,
        model_format=model_format,
        tp=tp,
        session_len=session_len,
        max_batch_size=max_batch_size,
        cache_max_entry_count=cache_max_entry_count,
        cache_block_seq_len=cache_block_seq_len,
        quant_policy=quant_policy,
        kv_rotation=kv_rotation,
        lm_head_bits=lm_head_bits,
        enable_prefix_caching=enable_prefix_caching,
        max_prefill_token_num=max_prefill_token_num,
        num_tokens_per_iter=num_tokens_per_iter,
        num_speculative_tokens=num_speculative_tokens,
        compile_cache=compile_cache,
    )
    # Here and not above: bad options are refused, and help is shown, without waiting for jax.
    from jaxdeploy.cli.progress_bars import ProgressBars
    from serve.api_server import Progress, run

    def load(progress: Progress):
        from jaxdeploy.loading import load_engine

        with ProgressBars() as bars:

            def both(phase: str, done: int, total: int) -> None:
                progress(phase, done, total)
                bars(phase, done, total)

            return load_engine(model, engine, chat_template=chat_template, progress=both)

    run(server, load, announce=lambda line: print(line, file=sys.stderr, flush=True))


def split_list(values: list[str] | None) -> tuple[str, ...]:
    """``["a,b", "c"]`` as ``("a", "b", "c")``."""
    return tuple(part.strip() for value in values or () for part in value.split(",") if part.strip())
