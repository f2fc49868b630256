"""Tables, and the marked parts of a document that are written anew."""

from collections.abc import Sequence
from typing import Any


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A table of all keys, in the order in which they first appear; what a row lacks stays empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([number(row.get(name, "")) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: Any) -> str:
    """Three digits or more, as people read them."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def begin_of(section: str) -> str:
    """The line before a section that a script writes."""
    return f"<!-- bench_report: {section} -->"


END = "<!-- bench_report: end -->"


def with_section(document: str, section: str, text: str) -> str:
    """The document with new text in one marked section.

    Raises:
        ValueError: the section is not marked, or has no end.
    """
    begin = begin_of(section)
    before, found, rest = document.partition(begin)
    if not found:
        raise ValueError(f"the document has no line {begin!r}; add it and {END!r} where the section shall be")
    if begin in rest:
        raise ValueError(f"the document has the line {begin!r} twice")
    old, found, after = rest.partition(END)
    if not found or "<!-- bench_report:" in old:
        raise ValueError(f"the section {begin!r} has no line {END!r}")
    return f"{before}{begin}\n{text.strip()}\n{END}{after}"
