"""The places along a run at which running medians are taken."""

import numpy as np

# One of a stretch of rows takes time as the stretch is long, so one at every row would take the square of a run's rows.
# A panel of the report is about as many pixels wide, and stretches so close together, each at least twenty times as
# long as the way to the next, share nearly all of their rows.
MOST = 500


def places(count: int) -> np.ndarray:
    """Indices below `count`: all of them, or MOST that are evenly spaced from the first to the last."""
    return np.arange(count) if count <= MOST else np.linspace(0, count - 1, MOST).round().astype(int)
