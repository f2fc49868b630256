"""Answers of ``/v1/responses``, kept in memory for a while so that clients can go on from them."""

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_RESPONSES = 4096
MAX_CHARACTERS = 64 * 2**20
"""Of all conversations together, each counted whole though they share messages."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One answer.

    Attributes:
        response: the object that the client got.
        messages: the conversation up to and with the answer, as chat messages without the instructions.
        size: characters.
    """

    response: dict[str, Any]
    messages: list[dict[str, Any]]
    size: int


class ResponseStore:
    """Forgets the oldest answers when there are too many, or too long ones.

    Args:
        most: answers.
        most_characters: of all answers and conversations.
    """

    def __init__(self, most: int = MAX_RESPONSES, most_characters: int = MAX_CHARACTERS):
        self._most, self._most_characters = most, most_characters
        self._stored: OrderedDict[str, StoredResponse] = OrderedDict()
        self._characters = 0

    def add(self, response: dict[str, Any], messages: Sequence[dict[str, Any]]) -> None:
        """Keep an answer. One that is longer than all may be together is not kept."""
        size = len(json.dumps(response)) + len(json.dumps(messages))
        self._stored[response["id"]] = StoredResponse(response, list(messages), size)
        self._characters += size
        while self._stored and (len(self._stored) > self._most or self._characters > self._most_characters):
            _, oldest = self._stored.popitem(last=False)
            self._characters -= oldest.size

    def get(self, response_id: str) -> StoredResponse | None:
        """An answer; None if it was never kept, or is forgotten."""
        return self._stored.get(response_id)

    def remove(self, response_id: str) -> bool:
        """Forget an answer; whether it was there."""
        stored = self._stored.pop(response_id, None)
        self._characters -= stored.size if stored else 0
        return stored is not None
