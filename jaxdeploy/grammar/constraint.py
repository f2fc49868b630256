"""One answer held to a grammar by llguidance."""

from concurrent.futures import Executor, Future

import numpy as np
from llguidance import LLMatcher

from jaxdeploy.errors import RequestError


class LLGuidanceConstraint:
    """A Constraint whose next mask is computed on another thread as soon as its token is known.

    The mask is ready, or nearly so, by the time the engine plans the row again; llguidance holds no interpreter lock
    meanwhile. Once the grammar is complete only end tokens are allowed.

    Args:
        matcher: a matcher of its own, at the start.
        words: uint32 words of a mask.
        pool: runs the computation.
        param: the request's field that the grammar came from, for messages.
    """

    def __init__(self, matcher: LLMatcher, words: int, pool: Executor, param: str):
        self._matcher, self._words, self._pool, self._param = matcher, words, pool, param
        self._taken = 0
        self._next: Future[np.ndarray] = pool.submit(self._compute)

    def mask(self) -> np.ndarray:
        """See ``Constraint.mask``; uint32 [words].

        Raises:
            RequestError: the grammar became too complex to follow, or was given a token that it does not allow.
        """
        mask = self._next.result()
        if self._matcher.is_error():
            raise RequestError(
                f"the grammar of {self._param!r} failed after {self._taken} tokens: {self._matcher.get_error()}",
                param=self._param,
            )
        return mask

    def advance(self, token: int) -> None:
        """See ``Constraint.advance``. A token that is not allowed shows in the next ``mask``."""
        self._next.result()  # the matcher serves one thread at a time
        self._taken += self._matcher.consume_token(token)
        self._next = self._pool.submit(self._compute)

    def _compute(self) -> np.ndarray:
        mask = np.zeros(self._words, np.uint32)
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        return mask
