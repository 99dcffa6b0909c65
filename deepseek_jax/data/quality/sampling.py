"""A sample of a large set to which all records are compared, so that the time is linear and not quadratic."""

import numpy as np

MOST = 20_000


def sampled(count: int) -> np.ndarray:
    """Ascending places of a fixed random sample of MOST of `count` records; all places if there are fewer."""
    if count <= MOST:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, MOST, replace=False))


def among(count: int, things: str) -> str:
    """A clause on the sampling, for a finding's sentence; "" if all were used."""
    return f"; compared to {MOST:,} of {count:,} {things}, drawn at random" if count > MOST else ""
