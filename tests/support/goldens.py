"""Golden logits of transformers (see scripts/make_goldens.py)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parents[1] / "goldens"


@dataclass(frozen=True)
class Golden:
    """Tokens of one sequence and transformers' logits [T, V] after each; the first ``prefill`` tokens are the prompt."""

    tokens: np.ndarray
    prefill: int
    logits: np.ndarray


def load_golden(case: str) -> Golden:
    """The golden file of a tiny checkpoint."""
    with np.load(FOLDER / f"{case}.npz") as file:
        return Golden(file["tokens"], int(file["prefill"]), file["logits"])
