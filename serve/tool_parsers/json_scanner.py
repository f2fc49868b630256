"""An incremental JSON scanner: finds where a value ends, and the first character that can't be JSON (RFC 8259)."""

import json
import re

WHITE_SPACE = " \t\n\r"
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_WORD = re.compile(r"[-+.0-9A-Za-z]+")
_WHOLE_WORD = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_HEX = "0123456789abcdefABCDEF"


class JsonScanner:
    """Scans one JSON value that comes in pieces; the state depends on the characters alone, not on the pieces.

    Strict but for one thing: raw control characters inside strings, which models do write, are taken and come out
    escaped.
    Nesting is kept in a list, so depth costs no recursion.

    Attributes:
        done: the value is complete; nothing further is taken.
        failed: the next character (not taken) can't continue the value.
    """

    def __init__(self):
        self.done = False
        self.failed = False
        self._closers: list[str] = []  # what closes each open bracket, outermost first
        self._state = "value"
        self._word = ""
        self._hex_digits = 0

    def scan(self, text: str, start: int = 0) -> tuple[int, str]:
        """Takes characters of ``text`` from ``start`` until the value ends or fails or the text runs out.

        Returns:
            The index after the last character taken, and the characters taken as valid JSON text.
        """
        at, clean = start, []
        while at < len(text) and not self.done and not self.failed:
            char = text[at]
            if self._state in ("string", "key string") and (run := _PLAIN.match(text, at)):
                piece = run.group()
            elif self._state == "word":
                run = _WORD.match(text, at)
                if run is None:
                    self._end_word()
                    continue
                piece = run.group()
                self._word += piece
            else:
                piece = self._step(char)
                if piece is None:
                    self.failed = True
                    break
                at += 1
                clean.append(piece)
                continue
            clean.append(piece)
            at += len(piece)
        return at, "".join(clean)

    def close(self) -> bool:
        """Says that no more text comes; returns whether the value is complete (a bare number ends only here)."""
        if self._state == "word" and not self._closers:
            self._end_word()
        return self.done

    def _step(self, char: str) -> str | None:
        """Takes one character that is no plain run; None if it can't stand here."""
        state = self._state
        if state in ("string", "key string"):
            return self._step_in_string(char)
        if state in ("escape", "key escape"):
            return self._step_in_escape(char)
        if char in WHITE_SPACE:
            return char
        if state in ("value", "value or end"):
            if state == "value or end" and char == self._closers[-1]:
                return self._close_bracket(char)
            return self._begin_value(char)
        if state in ("key", "key or end"):
            if char == '"':
                self._state = "key string"
                return char
            return self._close_bracket(char) if state == "key or end" and char == "}" else None
        if state == "colon":
            self._state = "value"
            return char if char == ":" else None
        # state "comma or end"
        if char == ",":
            self._state = "key" if self._closers[-1] == "}" else "value"
            return char
        return self._close_bracket(char) if char == self._closers[-1] else None

    def _begin_value(self, char: str) -> str | None:
        if char == "{":
            self._closers.append("}")
            self._state = "key or end"
        elif char == "[":
            self._closers.append("]")
            self._state = "value or end"
        elif char == '"':
            self._state = "string"
        elif char in "-0123456789tfn":
            self._state, self._word = "word", char
        else:
            return None
        return char

    def _step_in_string(self, char: str) -> str:
        key = "key " if self._state == "key string" else ""
        if char == "\\":
            self._state = key + "escape"
            self._hex_digits = 0
        elif char == '"':
            if key:
                self._state = "colon"
            else:
                self._end_value()
        else:
            return json.dumps(char)[1:-1]
        return char

    def _step_in_escape(self, char: str) -> str | None:
        string = "key string" if self._state == "key escape" else "string"
        if self._hex_digits:
            if char not in _HEX:
                return None
            self._hex_digits -= 1
            if not self._hex_digits:
                self._state = string
        elif char == "u":
            self._hex_digits = 4
        elif char in '"\\/bfnrt':
            self._state = string
        else:
            return None
        return char

    def _close_bracket(self, char: str) -> str:
        self._closers.pop()
        self._end_value()
        return char

    def _end_word(self) -> None:
        if _WHOLE_WORD.fullmatch(self._word):
            self._end_value()
        else:
            self.failed = True

    def _end_value(self) -> None:
        if self._closers:
            self._state = "comma or end"
        else:
            self.done = True


def clean_json(text: str) -> str | None:
    """``text`` as valid JSON (raw control characters in strings escaped), or None if it is not one JSON value."""
    scanner = JsonScanner()
    text = text.strip(WHITE_SPACE)
    end, clean = scanner.scan(text)
    return clean if scanner.close() and end == len(text) else None
