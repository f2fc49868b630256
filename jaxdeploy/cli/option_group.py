"""Options written once, as a dataclass: a command takes them as one parameter."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from inspect import Parameter, signature
from typing import Any, get_type_hints

Command = Callable[..., None]


def with_options(
    parameter: str, group: Any, *, only: Sequence[str] = (), without: Sequence[str] = (), own_before: str | None = None
) -> Callable[[Command], Command]:
    """Make the fields of a dataclass options of a command, which gets them as the dataclass.

    Typer reads options from a signature and calls by name. The decorated function's signature has the fields, annotated for
    typer, in the parameter's place.

    Args:
        parameter: of the command, keyword-only.
        group: an instance of the dataclass. Its values are the defaults; a field that is no option keeps its value.
        only: fields that are options, in the help's order; all of them if it is empty.
        without: fields that are not.
        own_before: the field before which the help shows the command's other options; None leaves those where they are.
    """
    hints = get_type_hints(type(group), include_extras=True)
    names = [name for name in only or hints if name not in without]
    options = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=getattr(group, name), annotation=hints[name]) for name in names
    ]

    def decorate(command: Command) -> Command:
        written = signature(command)
        place = list(written.parameters).index(parameter)
        own = [option.replace(kind=Parameter.KEYWORD_ONLY) for option in written.parameters.values()]
        del own[place]

        @wraps(command)
        def run(**values: Any) -> None:
            typed = {name: values.pop(name) for name in names}
            command(**values, **{parameter: replace(group, **typed)})

        if own_before is None:
            shown = [*own[:place], *options, *own[place:]]
        else:
            cut = names.index(own_before)
            shown = [*options[:cut], *own, *options[cut:]]
        run.__dict__["__signature__"] = written.replace(parameters=shown)
        return run

    return decorate
