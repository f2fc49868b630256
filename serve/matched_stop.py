"""Finds out which stop string ended an answer."""

from collections.abc import Sequence
from dataclasses import replace

from jaxdeploy.engine.request import Output
from jaxdeploy.text.stop_strings import StopStrings


class MatchedStop:
    """Takes the stop string off an answer that the engine ended with the string left in.

    Args:
        stops: those of the request.
        others: that the engine stops at as well.
    """

    def __init__(self, stops: Sequence[str], others: Sequence[str] = ()):
        self._wanted = frozenset(stops)
        self._strings = StopStrings((*stops, *others), include=False)

    @property
    def found(self) -> str | None:
        """The request's stop string that ended the answer."""
        return self._strings.stopped if self._strings.stopped in self._wanted else None

    def strip(self, output: Output) -> Output:
        """The output without the stop string."""
        text, _ = self._strings.feed(output.text)
        if output.finish_reason is not None:
            text += self._strings.flush()
        return replace(output, text=text)
