"""Forecasting: the next values of a series from a window of those before, split by time.

S steps of the window  Z steps of the horizon
"""

import numpy as np

from deepseek_jax.data.sets.config import DatasetConfig
from deepseek_jax.data.sets.dataset import Dataset, Records
from deepseek_jax.data.sets.source import Source, package
from deepseek_jax.errors import UserError


def co2(config: DatasetConfig) -> Source:
    """CO2 in the air of Mauna Loa, parts per million, 526 monthly means from March 1958 (weekly in statsmodels).

    The five months without a measurement, all before 1965, lie on the line between their neighbours.
    """
    weekly = package("statsmodels.datasets", "statsmodels", "co2").co2.load().data["co2"]
    return windows("co2", weekly.resample("MS").mean().interpolate().to_numpy(), config, season=12)


def temperatures(config: DatasetConfig) -> Source:
    """8,759 hourly temperatures of a normal year in Seattle, degrees Fahrenheit."""
    loaded = package("vega_datasets", "vega_datasets", "temperatures").local_data.seattle_temps()
    return windows("temperatures", loaded["temp"].to_numpy(), config, season=24)


def windows(name: str, values: np.ndarray, config: DatasetConfig, season: int) -> Source:
    """Every window of the series [T], relative to its own last value: a trend leads no window out of what was seen.

    The first values are to train on, the last to test.  A window is in the split in which all of its targets lie, and
    may look back across the border, as a forecast does; windows whose targets lie on both sides are left out, so no
    value is a target in two splits.  `season` is the set's own, where the config gives no other.
    """
    S, Z, season = config.series.window, config.series.horizon, config.series.season or season
    if S < season:
        raise UserError(
            f"dataset.series.window is {S}; {name} needs its season, {season}, or the naive forecast fails."
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
        if not inside and share:  # a share that rounds to no value too: windows cut for it would share values
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
    """[B Z] for raw inputs [B S 1]: each value is the one a season before it, the last season repeating for ever."""
    Z, season = dataset.outputs, dataset.season
    last_season = inputs[:, -season:, 0]
    return last_season[:, np.arange(Z) % season]
