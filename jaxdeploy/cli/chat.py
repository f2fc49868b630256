"""``jaxdeploy chat``: a conversation in the terminal, or one answer."""

import sys
from typing import Annotated

import typer

from jaxdeploy.cli.option_group import with_options
from jaxdeploy.cli.options import ChatTemplate, EngineOptions, Model
from jaxdeploy.cli.sampling_options import SamplingOptions

app = typer.Typer(add_completion=False)


def note(text: str) -> None:
    """Show a line that is not part of an answer: on stderr, so that stdout can be piped on."""
    print(text, file=sys.stderr, flush=True)


def write(text: str) -> None:
    """Show a piece of an answer at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def read_line(prompt: str) -> str:
    """The next line of stdin. The prompt is shown to a person only: a pipe gets answers and nothing else."""
    return input(prompt if sys.stdin.isatty() else "")


@app.command()
@with_options("sampling", SamplingOptions())
@with_options("engine", EngineOptions(max_batch_size=1), without=["num_tokens_per_iter"])
def chat(
    model: Model = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", help="Answer this once, print only the answer, and exit; - reads the text from stdin."
        ),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="System prompt of the conversation.")] = None,
    chat_template: ChatTemplate = None,
    *,
    sampling: SamplingOptions,
    engine: EngineOptions,
) -> None:
    """Chat with a model.

    An empty line ends a message. `end` starts a new conversation, `exit` leaves. Ctrl-C stops an answer; twice at the
    prompt, it leaves.
    """
    generation, config = sampling.config(one_shot=prompt is not None), engine.config()
    # Here and not above: bad options are refused, and help is shown, without waiting for jax.
    from jaxdeploy.cli.chat_loop import ChatLoop
    from jaxdeploy.cli.compile_cache import with_compile_cache
    from jaxdeploy.cli.memory_line import memory_line
    from jaxdeploy.cli.progress_bars import ProgressBars
    from jaxdeploy.pipeline import pipeline

    with ProgressBars() as progress:
        pipe = pipeline(
            model,
            backend_config=with_compile_cache(config),
            chat_template_config=chat_template,
            progress=progress,
        )
    with pipe:
        note(memory_line(pipe.engine.memory))
        loop = ChatLoop(pipe, read_line, write, note, generation, system)
        if prompt is None:
            enable_line_editing()
            loop.run()
        else:
            loop.ask(sys.stdin.read().strip() if prompt == "-" else prompt)


def enable_line_editing() -> None:
    """Arrow keys and history at the prompt, where Python has readline."""
    try:
        import readline  # noqa: F401  (importing it changes input())
    except ImportError:  # Windows
        return
