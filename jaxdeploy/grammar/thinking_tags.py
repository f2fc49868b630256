"""The marks of a model's thinking, as a value that costs nothing to import."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ThinkingTags:
    """How a model marks its thinking.

    Attributes:
        inside: the prompt has opened the thinking already; else the answer may open it, or go without.
    """

    begin: str = "<think>"
    end: str = "</think>"
    inside: bool = True
