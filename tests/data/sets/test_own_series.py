"""A user's own series: every value of the file in order of its rows; rows that cannot be read are refused."""

import dataclasses

import numpy as np
import pytest

from deepseek_jax.data.sets.config import ColumnsConfig, DatasetConfig, SeriesConfig
from deepseek_jax.data.sets.registry import open_set
from deepseek_jax.data.sets.series import seasonal_naive
from deepseek_jax.errors import UserError
from tests.user_files import write_jsonl

VALUES = [100.0 + number + number % 4 for number in range(60)]


def own(path, **series) -> DatasetConfig:
    settings = SeriesConfig(**{"window": 8, "horizon": 3} | series)
    return DatasetConfig(name=str(path), columns=ColumnsConfig(series="level"), series=settings)


@pytest.fixture
def table(tmp_path):
    rows = [f"day {number},{value}" for number, value in enumerate(VALUES)]
    (tmp_path / "t.csv").write_text("\n".join(["day,level", *rows]) + "\n\n")
    return tmp_path / "t.csv"


def test_windows_are_cut_from_the_values_of_the_file(table):
    dataset = open_set(dataclasses.replace(own(table), standardise=False))
    assert (dataset.name, dataset.names, dataset.target_names) == ("t.csv", ("level",), ("+1", "+2", "+3"))
    assert dataset.shape() == {"length": 8, "channels": 1} and dataset.season == 1
    test = dataset.splits["test"]
    assert test["ids"].tolist() == list(range(48 - 8, 60 - 8 - 3 + 1))
    start = int(test["ids"][0])
    np.testing.assert_allclose(test["inputs"][0, :, 0], np.array(VALUES[start : start + 8]) - VALUES[start + 7])
    np.testing.assert_allclose(test["targets"][0], np.array(VALUES[start + 8 : start + 11]) - VALUES[start + 7])
    write_jsonl(table.parent / "t.JSONL", ({"level": value} for value in VALUES))
    lines = open_set(dataclasses.replace(own(table.parent / "t.JSONL"), standardise=False))
    assert (lines.splits["test"]["inputs"] == test["inputs"]).all()


def test_the_naive_forecast_is_the_last_value_or_that_of_the_given_season(table):
    dataset = open_set(own(table))
    assert not seasonal_naive(dataset, dataset.splits["test"]["inputs"]).any()
    dataset = open_set(own(table, season=4))
    test = dataset.splits["test"]
    np.testing.assert_allclose(test["targets"] - seasonal_naive(dataset, test["inputs"]), 4)
    assert open_set(DatasetConfig(name="co2", series=SeriesConfig(season=6))).season == 6
    assert open_set(DatasetConfig(name="co2")).season == 12
    with pytest.raises(UserError, match="window is 8; t.csv needs at least its season, 9"):
        open_set(own(table, season=9))
    with pytest.raises(UserError, match="dataset.series.season is -1"):
        SeriesConfig(season=-1)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("x,", "t.csv line 62: level is ''; it must be a number"),
        ("x,low", "t.csv line 62: level is 'low'; it must be a number"),
        ("x,inf", "t.csv line 62: level is inf; correct"),
        ("x", "t.csv line 62: the row does not have as many fields as the header"),
        ("\nx,1", "t.csv line 62: the line is empty; a series has a value of level in each"),
    ],
)
def test_faulty_rows_of_a_series_are_refused(table, row, said):
    table.write_text(table.read_text().rstrip() + f"\n{row}\n\n")
    with pytest.raises(UserError, match=said):
        open_set(own(table))


def test_a_quoted_text_may_contain_empty_lines(table):
    table.write_text(table.read_text().replace("day 3,", '"day 3\n\n \nwarm",'))
    assert len(open_set(own(table)).splits["train"]["ids"]) == 42 - 8 - 3 + 1


def test_impossible_series_are_refused(table):
    for name, given in {"text": "day", "features": ("day",), "label": "day", "boxes": "day", "split": "day"}.items():
        columns = dataclasses.replace(ColumnsConfig(series="level"), **{name: given})
        with pytest.raises(UserError, match=f"dataset.columns.series is given, and dataset.columns.{name} too"):
            open_set(dataclasses.replace(own(table), columns=columns))
    with pytest.raises(UserError, match="no column 'height'; its columns are day, level"):
        open_set(dataclasses.replace(own(table), columns=ColumnsConfig(series="height")))
    with pytest.raises(UserError, match="t.csv has 42 values to train on; .* need 67"):
        open_set(own(table, window=64))
    table.write_text("day,level\n")
    with pytest.raises(UserError, match="t.csv has 0 values to train on"):
        open_set(own(table))
    with pytest.raises(UserError, match="there is no file"):
        open_set(own(table.parent / "other.csv"))
