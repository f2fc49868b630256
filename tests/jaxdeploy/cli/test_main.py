"""The program: help, spelling of names, exit status."""

import subprocess
import sys
from importlib.metadata import version

import pytest

from jaxdeploy.cli.main import COMMANDS, main


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    shown = capsys.readouterr()
    return exit_.value.code, shown.out, shown.err


@pytest.mark.parametrize("arguments", [["--help"], ["chat", "--help"], ["lite", "perplexity", "-h"]])
def test_help_imports_no_jax(arguments):
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('imported:', [m for m in ('jax', 'numpy', 'starlette') if m in sys.modules]))\n"
        f"from jaxdeploy.cli.main import main; main({arguments!r})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage: jaxdeploy" in result.stdout
    assert result.stdout.endswith("imported: []\n")


def test_help_lists_every_command(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    assert all(command.name in out and command.help in out for command in COMMANDS)


def test_version(capsys):
    assert run(capsys, "--version") == (0, version("jaxdeploy") + "\n", "")


@pytest.mark.parametrize("name", ["check_env", "check-env"])
def test_command_names_take_both_spellings(capsys, name):
    status, out, _ = run(capsys, name, "--help")
    assert status == 0
    assert "Usage: jaxdeploy check_env" in out


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["chatt"], "Did you mean 'chat'?"),
        (["chat", "--session_lenn", "3"], "--session-len"),
        (["lite", "no_such_command"], "no_such_command"),
    ],
)
def test_unknown_names_exit_2_with_a_hint(capsys, arguments, hint):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert hint in err
