"""Curves of runs: how many rows say enough to compare them by."""

import numpy as np

from deepseek_jax.studies import curves


def of_rows(count: int, above: float = 0.0) -> dict:
    spent = np.arange(1, count + 1) * 100.0
    return {"curve": [[at, 8.0 - at / 100 + above] for at in spent]}


def speed_up(count: int, above: float) -> float | None:
    """Of a variant whose loss lies `above` the base's, equally fast."""
    runs = [of_rows(count) | {"variant": "base"}, of_rows(count, above) | {"variant": "other"}]
    found = curves.by_variant({"runs": runs})
    return curves.speed_up(found["base"], found["other"], 1.0, 1.0) if found else None


def test_rows_so_few_that_smoothing_leaves_no_slope_are_not_compared():
    """A hair's breadth of difference was then a speed-up of 0.3: the base is `there` from its first row on."""
    assert speed_up(3, 1e-4) is None
    for count in (4, 5, 20):
        np.testing.assert_allclose(speed_up(count, 1e-4), 1.0, atol=1e-3)
