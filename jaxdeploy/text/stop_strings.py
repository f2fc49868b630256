"""Stop strings, matched in the text and not in the tokens."""

from collections.abc import Sequence

from jaxdeploy.errors import RequestError


class StopStrings:
    """Cuts a stream of text at the first stop string.

    "First" is the one that is complete first, as in a stream of single characters; of two that end together, the
    longer. So the result does not depend on how the text is cut into pieces. Only text that may still be the start
    of a stop string is held back.

    Args:
        stops: the strings, none empty.
        include: return the stop string too.

    Raises:
        RequestError: a stop string is empty.
    """

    def __init__(self, stops: Sequence[str], include: bool):
        for i, stop in enumerate(stops):
            if not stop:
                raise RequestError(f"stop[{i}] is an empty string, which would end every answer; leave it out", "stop")
        self._stops = tuple(stops)
        self._include = include
        self._held = ""
        self._longest_hold = max((len(stop) - 1 for stop in stops), default=0)
        self.stopped: str | None = None

    def feed(self, text: str) -> tuple[str, str | None]:
        """Takes the next piece of text.

        Returns:
            What may be passed on, and the stop string if one was met. After that nothing more is passed on.
        """
        if self.stopped is not None:
            return "", self.stopped
        text = self._held + text
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            end, start, self.stopped = min(found)
            self._held = ""
            return text[: end if self._include else start], self.stopped
        cut = len(text) - self._hold(text)
        self._held = text[cut:]
        return text[:cut], None

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _hold(self, text: str) -> int:
        """Length of the longest end of the text that a stop string starts with."""
        for length in range(min(self._longest_hold, len(text)), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
