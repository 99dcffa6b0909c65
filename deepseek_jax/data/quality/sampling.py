"""The records of a large set that all are compared to, so that time grows with the records and not their square."""

import numpy as np

MOST = 20_000


def sampled(count: int) -> np.ndarray:
    """Places, ascending, of MOST of `count` records, drawn at random, always the same; of all where there are fewer."""
    if count <= MOST:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, MOST, replace=False))


def among(count: int, things: str) -> str:
    """What a sentence says of that; "" where nothing was left out."""
    return f"; compared to {MOST:,} of {count:,} {things}, drawn at random" if count > MOST else ""
