"""Forecasting: predict the next values of a time series from a window of past ones; split by time.

S steps of the window  Z steps of the horizon
"""

import numpy as np

from deepseek_jax.data.sets.config import DatasetConfig
from deepseek_jax.data.sets.dataset import Dataset, Records
from deepseek_jax.data.sets.source import Source, package
from deepseek_jax.errors import UserError


def co2(config: DatasetConfig) -> Source:
    """CO2 in the air at Mauna Loa, parts per million, 526 monthly means from March 1958 (weekly in statsmodels).

    The five months without a measurement, all before 1965, are interpolated linearly.
    """
    weekly = package("statsmodels.datasets", "statsmodels", "co2").co2.load().data["co2"]
    return windows("co2", weekly.resample("MS").mean().interpolate().to_numpy(), config, season=12)


def temperatures(config: DatasetConfig) -> Source:
    """8,759 hourly temperatures of a typical year in Seattle, in degrees Fahrenheit."""
    loaded = package("vega_datasets", "vega_datasets", "temperatures").local_data.seattle_temps()
    return windows("temperatures", loaded["temp"].to_numpy(), config, season=24)


def windows(name: str, values: np.ndarray, config: DatasetConfig, season: int) -> Source:
    """Every window of the series `values` [T], relative to its last value, so that a trend stays in the known range.

    The first values are for training, the last for testing.  A window belongs to the split that contains all of its
    targets; its inputs may reach back across the border, as in a real forecast.  Windows whose targets cross a border
    are left out, so no value is a target in two splits.  `season`: the default, if the config sets none.
    """
    S, Z, season = config.series.window, config.series.horizon, config.series.season or season
    if S < season:
        raise UserError(
            f"dataset.series.window is {S}; {name} needs at least its season, {season}, for the naive forecast."
        )
    trained = round((1 - config.val - config.test) * len(values))
    if trained < S + Z:
        raise UserError(
            f"{name} has {trained} values to train on; dataset.series.window and horizon ({S} and {Z}) need {S + Z}."
        )
    borders = [0, trained, round((1 - config.test) * len(values))]
    shares = {"train": 1.0, "val": config.val, "test": config.test}
    starts, given = [], []
    for (split, share), low, high in zip(shares.items(), borders, [*borders[1:], len(values)], strict=True):
        inside = range(max(low - S, 0), high - S - Z + 1)
        if not inside and share:  # also if the share rounds to no value: a forecast needs Z targets of its own
            raise UserError(
                f"{name} has {high - low} values for {split}; dataset.series.horizon needs {Z}: raise dataset.{split}, "
                "or set it to 0."
            )
        starts += inside
        given += [split] * len(inside)
    spans = np.lib.stride_tricks.sliding_window_view(values, S + Z)[starts]
    spans = (spans - spans[:, S - 1 : S]).astype(np.float32)
    records: Records = {
        "ids": np.array(starts, np.int64),
        "inputs": spans[:, :S, None],
        "lengths": np.full(len(starts), S, np.int32),
        "targets": spans[:, S:],
    }
    ahead = tuple(f"+{step}" for step in range(1, Z + 1))
    return Source(name, "numbers", "series", records, (), (name,), ahead, np.array(given), season)


def seasonal_naive(dataset: Dataset, inputs: np.ndarray) -> np.ndarray:
    """The naive forecast [B Z] for raw inputs [B S 1]: the last season, repeated."""
    Z, season = dataset.outputs, dataset.season
    last_season = inputs[:, -season:, 0]
    return last_season[:, np.arange(Z) % season]
