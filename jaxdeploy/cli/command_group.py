"""A group of commands that imports a command when it runs, and takes "-" for "_" and the other way round."""

from importlib import import_module

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command


def dashed(name: str) -> str:
    """``session_len`` as ``session-len``: the one spelling in which names are compared."""
    return name.replace("_", "-")


# Sub-commands inherit token_normalize_func through their parent context, so setting it on the root covers every option.
CONTEXT_SETTINGS = {"token_normalize_func": dashed, "help_option_names": ["-h", "--help"]}


class LazyCommand(TyperCommand):
    """Stands in the list of commands for one whose module is not imported yet.

    Args:
        name: of the command.
        module: what to import; its ``app`` is the command's ``typer.Typer``.
        help: the line that the group's own help shows.
    """

    def __init__(self, name: str, module: str, help: str):
        super().__init__(name, help=help)
        self.module = module

    def load(self):
        """Import the module and build the command."""
        app: typer.Typer = import_module(self.module).app
        return get_command(app)


class CommandGroup(TyperGroup):
    """Typer group that may hold lazy commands; names match in both spellings."""

    def get_command(self, ctx, cmd_name):
        """The command of that name, in either spelling; None if there is none."""
        for name, command in self.commands.items():
            if dashed(name) == dashed(cmd_name):
                return command
        return None

    def resolve_command(self, ctx, args):
        """Listed name, command, and the arguments left for it. A lazy command is imported here, when it is to run."""
        name, command, rest = super().resolve_command(ctx, args)
        if command is None:
            return name, command, rest
        return command.name, command.load() if isinstance(command, LazyCommand) else command, rest
