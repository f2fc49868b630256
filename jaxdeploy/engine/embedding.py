"""Texts as vectors: pooled hidden states of the model."""

from typing import Literal

import numpy as np

from jaxdeploy.engine.limits import Limits
from jaxdeploy.engine.side_pass import SidePass
from jaxdeploy.model.decoder import Decoder

Pooling = Literal["mean", "last"]


class Embedder:
    """Embeds texts one at a time, next to a running engine; see SidePass for its arguments."""

    def __init__(self, model: Decoder, params: dict, limits: Limits, *, quant_policy: int):
        self._pass = SidePass(model, params, limits, lambda _params, hidden, _: hidden, quant_policy=quant_policy)

    def embed(self, ids: list[int], pooling: Pooling = "mean") -> np.ndarray:
        """The mean of all tokens' final hidden states, or the last token's, scaled to length 1: float32 [D]."""
        chunks = [hidden[:count].astype(np.float32) for count, hidden in self._pass.run(ids)]
        states = np.concatenate(chunks)
        pooled = states.mean(axis=0) if pooling == "mean" else states[-1]
        return pooled / max(float(np.linalg.norm(pooled)), 1e-12)
