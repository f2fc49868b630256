"""How long prompts and answers are."""

from typing import NamedTuple

import numpy as np

DISTRIBUTIONS = ("fixed", "random", "sharegpt")
# Log-normal (median, sigma) of prompts and answers: many short ones and a long tail, as in people's chats. Made up to look
# like ShareGPT's, not measured on it.
_CHAT = ((120, 1.1), (150, 0.9))
_SHORTEST = 4


class Job(NamedTuple):
    """One request."""

    prompt: list[int]
    new: int


def jobs(distribution: str, count: int, *, prompt: int, new: int, vocabulary: int, seed: int) -> list[Job]:
    """``count`` requests of random tokens; none is longer than ``prompt`` tokens in and ``new`` out.

    Args:
        distribution: ``fixed`` makes all as long as that, ``random`` from half of it to all, ``sharegpt`` many short ones.
        seed: same seed, same requests.
    """
    rng = np.random.RandomState(seed)
    if distribution == "fixed":
        sizes = np.tile([prompt, new], (count, 1))
    elif distribution == "random":
        sizes = np.stack([rng.randint(max(1, most // 2), most + 1, count) for most in (prompt, new)], axis=1)
    else:
        drawn = [rng.lognormal(np.log(median), sigma, count) for median, sigma in _CHAT]
        sizes = np.clip(np.stack(drawn, axis=1).astype(int), _SHORTEST, [prompt, new])
    return [Job(rng.randint(0, vocabulary, size).tolist(), int(answer)) for size, answer in sizes]
