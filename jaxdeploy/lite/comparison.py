"""Whether two perplexities differ beyond noise: window by window on the same text. No jax here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 10_000
_FEWEST = 6
"""Windows. Of five there are 126 different resamples; the ends of an interval mean nothing."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model against a baseline, both scored on the same windows.

    Attributes:
        change: of the perplexity, as a share of the baseline's; positive is worse.
        low, high: its 95 % interval by a paired bootstrap over windows; NaN with fewer than 6 windows.
        standard_error: of the mean difference of the windows' negative log-likelihoods per token.
        windows: how many.
    """

    change: float
    low: float
    high: float
    standard_error: float
    windows: int

    @property
    def differs(self) -> bool | None:
        """True if the interval holds no 0; None if there are too few windows to say."""
        return None if math.isnan(self.low) else self.low > 0 or self.high < 0

    def sentence(self) -> str:
        """The finding in words."""
        if self.change == self.low == self.high == 0:
            return "the same in every window"
        more = "higher" if self.change > 0 else "lower"
        found = f"perplexity {abs(self.change):.2%} {more}"
        if self.differs is None:
            return f"{found}; {self.windows} windows are too few to say whether that is noise (at least {_FEWEST})"
        verdict = "differs beyond noise" if self.differs else "no difference beyond noise"
        return f"{verdict}: {found}, 95 % interval {self.low:+.2%} to {self.high:+.2%} over {self.windows} windows"


def compare_windows(
    baseline: Sequence[float], other: Sequence[float], tokens: Sequence[int], *, seed: int = 0
) -> Comparison:
    """Compare two models by the mean negative log-likelihoods of the same windows.

    Windows differ far more from each other than two models do on one of them, so differences are taken window by window
    (B. Efron, "Bootstrap methods", 1979; paired, percentile interval).

    Args:
        baseline, other: natural log, per token.
        tokens: that each window scored.

    Raises:
        ValueError: not the same windows.
    """
    if not len(baseline) == len(other) == len(tokens):
        raise ValueError(f"{len(baseline)}, {len(other)} and {len(tokens)} windows can't be paired")
    count = len(tokens)
    difference, weights = np.subtract(other, baseline), np.asarray(tokens, np.float64)
    mean = float(np.average(difference, weights=weights))
    if count < _FEWEST:
        return Comparison(math.expm1(mean), math.nan, math.nan, math.nan, count)
    shares = weights / weights.sum()
    error = float(np.sqrt(np.sum((shares * (difference - mean)) ** 2) * count / (count - 1)))
    drawn = np.random.default_rng(seed).integers(count, size=(_RESAMPLES, count))
    means = (difference[drawn] * weights[drawn]).sum(axis=1) / weights[drawn].sum(axis=1)
    low, high = np.expm1(np.quantile(means, (0.025, 0.975))).tolist()
    return Comparison(math.expm1(mean), low, high, error, count)
