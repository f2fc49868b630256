"""Guesses how an answer goes on: as the same words went on earlier in the text. No second model."""

NGRAMS = (3, 2)
"""Lengths of the ends that are looked up, the longest first."""
SMOOTHING = 0.25
MISS_SMOOTHING = 0.05
LEAST_ACCEPTANCE = 0.3
"""Below this share of accepted tokens a draft costs more than it saves: the answer waits for each step to be read, and checks
several tokens at once."""
PAUSE_TOKENS = 32


class NgramDrafter:
    """Drafts for one answer ("prompt lookup"), while they are good enough.

    Whoever uses a draft feeds it behind the last token, samples at each place as usual, and keeps what it sampled up to and
    including the first token that differs. So an answer has the same tokens with and without drafts.
    """

    def __init__(self):
        self._followers: dict[tuple[int, ...], int] = {}  # n-gram -> place of the token behind its latest occurrence
        self._indexed = 0
        self._acceptance = 0.5
        self._resume = 0

    def is_active(self, length: int) -> bool:
        """False for a while after drafts were often wrong; ``length`` is that of the text."""
        return length >= self._resume

    def propose(self, tokens: list[int], most: int) -> tuple[int, ...]:
        """At most ``most`` tokens that may follow; none if the end of the text is new."""
        for end in range(self._indexed, len(tokens)):
            for n in NGRAMS:
                if end >= n:
                    self._followers[tuple(tokens[end - n : end])] = end
        self._indexed = len(tokens)
        for n in NGRAMS:
            place = self._followers.get(tuple(tokens[-n:])) if len(tokens) > n else None
            if place is not None:
                return tuple(tokens[place : place + most])
        return ()

    def judge(self, offered: int, accepted: int, length: int) -> None:
        """Note how many tokens of a draft were right; 0 of 0 where there was none."""
        share, weight = (accepted / offered, SMOOTHING) if offered else (0.0, MISS_SMOOTHING)
        self._acceptance += weight * (share - self._acceptance)
        if self._acceptance < LEAST_ACCEPTANCE:
            self._acceptance, self._resume = 0.5, length + PAUSE_TOKENS
