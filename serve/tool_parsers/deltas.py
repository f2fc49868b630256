"""What a tool parser yields: pieces of text and pieces of calls, in the order of the model's text."""

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins; its arguments follow as ``CallArguments`` with the same index."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the JSON text of a call's arguments; the pieces of one call are to be concatenated."""

    index: int
    fragment: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The call's arguments are complete and valid JSON. A call that was cut off or is broken never gets one."""

    index: int


type Delta = TextDelta | CallStart | CallArguments | CallEnd


def joined(first: Delta, second: Delta) -> Delta | None:
    """The two deltas as one, or None if they are not of one kind (and one call)."""
    match first, second:
        case TextDelta(), TextDelta():
            return TextDelta(first.text + second.text)
        case CallArguments(), CallArguments() if first.index == second.index:
            return replace(first, fragment=first.fragment + second.fragment)
    return None


def merge(deltas: Iterable[Delta]) -> list[Delta]:
    """The same deltas with neighbours of one kind joined: what does not depend on how the text was split."""
    merged: list[Delta] = []
    for delta in deltas:
        both = joined(merged[-1], delta) if merged else None
        if both is None:
            merged.append(delta)
        else:
            merged[-1] = both
    return merged
