"""``jaxdeploy serve``: a model behind HTTP."""

import sys
from typing import Annotated

import typer

from jaxdeploy.cli.command_group import CommandGroup
from jaxdeploy.cli.option_group import with_options
from jaxdeploy.cli.options import ChatTemplate, EngineOptions, Model
from serve.options import LOG_LEVELS, ServerOptions

app = typer.Typer(cls=CommandGroup, add_completion=False, no_args_is_help=True)
SERVER = ServerOptions()
_PANEL = "Server"


@app.callback()
def serve() -> None:
    """Serve a model."""


@app.command("api_server")
@with_options("engine", EngineOptions())
def api_server(
    model: Model = None,
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
    chat_template: ChatTemplate = None,
    *,
    engine: EngineOptions,
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
    config = engine.config()
    # Here and not above: bad options are refused, and help is shown, without waiting for jax.
    from jaxdeploy.cli.progress_bars import ProgressBars
    from serve.api_server import Progress, run

    def load(progress: Progress):
        from jaxdeploy.loading import load_engine

        with ProgressBars() as bars:

            def both(phase: str, done: int, total: int) -> None:
                progress(phase, done, total)
                bars(phase, done, total)

            return load_engine(model, config, chat_template=chat_template, progress=both)

    run(server, load, announce=lambda line: print(line, file=sys.stderr, flush=True))


def split_list(values: list[str] | None) -> tuple[str, ...]:
    """``["a,b", "c"]`` as ``("a", "b", "c")``."""
    return tuple(part.strip() for value in values or () for part in value.split(",") if part.strip())
