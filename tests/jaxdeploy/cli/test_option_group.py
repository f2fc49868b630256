"""Options that a command takes as a dataclass."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from jaxdeploy.cli.option_group import with_options


@dataclass(frozen=True, slots=True)
class Drink:
    name: Annotated[str, typer.Option("--name", help="What it is.")] = "tea"
    cups: Annotated[int, typer.Option("--cups")] = 1
    milk: Annotated[bool, typer.Option("--milk/--black")] = False


def order(drink: Drink = Drink(), *arguments: str, **options):
    """The names of a command's options, and what it gets from ``arguments``: (names, place, drink, paid)."""
    app, got = typer.Typer(add_completion=False), []

    @app.command()
    @with_options("drink", drink, **options)
    def command(
        place: Annotated[str, typer.Option("--place")] = "here",
        *,
        drink: Drink,
        paid: Annotated[bool, typer.Option("--paid")] = False,
    ) -> None:
        """Order a drink."""
        got.append((place, drink, paid))

    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    assert get_command(app).help == "Order a drink."
    return [parameter.name for parameter in get_command(app).params], *got[0]


def test_fields_stand_in_the_parameters_place():
    names, place, drink, paid = order(Drink(), "--cups", "2", "--paid", "--milk")
    assert names == ["place", "name", "cups", "milk", "paid"]
    assert (place, drink, paid) == ("here", Drink("tea", 2, True), True)


def test_the_instance_has_the_defaults_also_of_fields_that_are_no_options():
    names, _, drink, _ = order(Drink("coffee", cups=3), "--milk", without=["cups"])
    assert names == ["place", "name", "milk", "paid"]
    assert drink == Drink("coffee", 3, True)


def test_only_sets_the_order():
    assert order(only=["milk", "name"])[0] == ["place", "milk", "name", "paid"]


def test_the_commands_own_options_may_stand_among_the_fields():
    names, *got = order(Drink(), "--place", "there", "--name", "water", own_before="cups")
    assert names == ["name", "place", "paid", "cups", "milk"]
    assert got == ["there", Drink("water"), False]


def test_an_unknown_field_is_refused_where_the_command_is_defined():
    with pytest.raises(AttributeError, match="sugar"):
        with_options("drink", Drink(), only=["sugar"])
