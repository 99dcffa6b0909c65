"""Paired differences over seeds: their mean, 95% interval, and how likely they are by chance."""

import dataclasses
from collections.abc import Sequence

import numpy as np

CONFIDENCE, RESAMPLES = 0.95, 9999


@dataclasses.dataclass(frozen=True)
class Difference:
    """`low` to `high`: Student's 95% interval of the mean difference, by which verdicts are made.

    p_t: of the paired t test; p_bootstrap: twice the smaller share of resampled means on one side of 0.  With few pairs
    the bootstrap is too sure of itself: it knows no difference that it has not seen.
    """

    mean: float
    low: float
    high: float
    p_t: float
    p_bootstrap: float


def difference(left: Sequence[float], right: Sequence[float]) -> Difference:
    """Of `left` minus `right`, pair by pair; at least two."""
    from scipy import stats  # takes half a second to import

    d = np.asarray(left, float) - np.asarray(right, float)
    mean = float(d.mean())
    if np.ptp(d) == 0:  # equal differences: the interval is a point, and scipy would divide by 0
        p = 1.0 if mean == 0 else 0.0
        return Difference(mean, mean, mean, p, p)
    test = stats.ttest_rel(left, right)
    interval = test.confidence_interval(CONFIDENCE)
    drawn = stats.bootstrap(
        (d,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    ).bootstrap_distribution
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p_bootstrap = min(1.0, 2 * (tail + 1) / (RESAMPLES + 1))
    return Difference(mean, float(interval.low), float(interval.high), float(test.pvalue), float(p_bootstrap))
