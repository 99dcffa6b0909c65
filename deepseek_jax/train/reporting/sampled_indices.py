"""The rows of a run's metrics at which running medians are taken."""

import numpy as np

# A median takes time in proportion to its window, itself a share of all rows, so medians at every row would take
# quadratic time.  This many are enough: a panel of the report is about as many pixels wide, and neighbouring windows,
# at least twenty times as long as the distance between them, share nearly all of their rows.
MOST = 500


def sampled_indices(count: int) -> np.ndarray:
    """Indices below `count`: all of them, or MOST evenly spaced ones from the first to the last."""
    return np.arange(count) if count <= MOST else np.linspace(0, count - 1, MOST).round().astype(int)
