"""Progress of loading and compiling, as bars on stderr."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from jaxdeploy.cli.memory_line import format_bytes

LOAD = "load"
TITLES = {
    LOAD: "Loading weights",
    "compile": "Compiling",
    "score": "Scoring tokens",
    "sample": "Writing text",
    "layers": "Quantizing",
}


class ProgressBars:
    """One bar per phase; an instance is the ``progress`` argument of ``pipeline``. Use as a context manager.

    Args:
        console: where to draw; None is stderr, so that stdout holds answers only.
    """

    def __init__(self, console: Console | None = None):
        self._bars = Progress(
            TextColumn("{task.description:<16}"),
            BarColumn(),
            TextColumn("{task.fields[amount]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
        )
        self._tasks = {}

    def __enter__(self) -> "ProgressBars":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Show ``done`` of ``total``: bytes in phase "load", else a count. May be called from several threads."""
        amount = f"{format_bytes(done)} of {format_bytes(total)}" if phase == LOAD else f"{done} of {total}"
        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(TITLES.get(phase, phase), total=total, amount=amount)
        self._bars.update(self._tasks[phase], completed=done, total=total, amount=amount)
