"""The command ``jaxdeploy``. Commands are imported when they run: ``--help`` answers at once and without jax."""

import sys
from collections.abc import Sequence
from importlib.metadata import version as installed_version
from typing import Annotated

import typer
from typer.main import get_command

from jaxdeploy.cli.command_group import CONTEXT_SETTINGS, CommandGroup, LazyCommand
from jaxdeploy.errors import EngineError, JaxdeployError, UserError

USER_ERROR_EXIT = 2
ENGINE_ERROR_EXIT = 1


COMMANDS = (
    LazyCommand("chat", "jaxdeploy.cli.chat", "Chat with a model in the terminal, or answer one --prompt."),
    LazyCommand("serve", "jaxdeploy.cli.serve", "Serve a model by the OpenAI API."),
    LazyCommand("compile", "jaxdeploy.cli.compile", "Compile a model ahead, so that its next start is quick."),
    LazyCommand("lite", "jaxdeploy.cli.lite", "Measure and compress models."),
    LazyCommand("check_env", "jaxdeploy.cli.check_env", "Show versions, devices and what runs here."),
)

# rich_markup_mode: drawing boxes around six lines of help would double the time that they take.
app = typer.Typer(
    cls=CommandGroup,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings=CONTEXT_SETTINGS,
)


def print_version(wanted: bool) -> None:
    """Print the version and leave, if asked to."""
    if wanted:
        print(installed_version("jaxdeploy"))
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Compress, deploy and serve large language models on NVIDIA GPUs from JAX."""


def root_command() -> CommandGroup:
    """``jaxdeploy`` with everything below it, nothing of it imported."""
    group = get_command(app)
    assert isinstance(group, CommandGroup)
    for command in COMMANDS:
        group.add_command(command)
    return group


def fail(error: JaxdeployError, status: int) -> None:
    """Print ``error`` to stderr as one line and exit with ``status``."""
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    sys.exit(status)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command line and exit.

    Exit status: 0 done, 1 the engine failed, 2 the caller can mend it (bad option, checkpoint or request), 130 Ctrl-C.

    Args:
        argv: arguments after the program's name; None takes the process's own.
    """
    try:
        root_command().main(argv, prog_name="jaxdeploy")
    except UserError as error:
        fail(error, USER_ERROR_EXIT)
    except EngineError as error:
        fail(error, ENGINE_ERROR_EXIT)
