"""Paired differences over seeds: their mean, 95% interval, and how likely they are by chance."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

CONFIDENCE, RESAMPLES = 0.95, 9999
ROUNDING = 1e-14  # relative to the scores: differences closer than this are equal but for rounding


@dataclasses.dataclass(frozen=True)
class Difference:
    """`low` to `high`: Student's 95% interval of the mean difference, on which verdicts are based.

    p_t: of the paired t test; p_bootstrap: twice the smaller share of resampled means on one side of 0.  With few pairs
    the bootstrap is overconfident, as it can only resample the differences that it has.
    """

    mean: float
    low: float
    high: float
    p_t: float
    p_bootstrap: float


def difference(left: Sequence[float], right: Sequence[float]) -> Difference:
    """The statistics of `left` minus `right`, at least two pairs.  All NaN if any score is NaN or infinite."""
    from scipy import stats  # takes half a second to import

    both = np.asarray([left, right], float)
    if not np.isfinite(both).all():
        return Difference(*[math.nan] * 5)
    d = both[0] - both[1]
    mean = float(d.mean())
    if np.ptp(d) <= ROUNDING * np.abs(both).max():  # equal: the interval is a point, and scipy would divide by 0
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
