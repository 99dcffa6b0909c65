"""A user's own time series: a table whose rows hold its values in order of time."""

import dataclasses
import pathlib
from collections.abc import Iterable

import numpy as np

from deepseek_jax.data.csv_rows import empty_rows
from deepseek_jax.data.sets.config import ColumnsConfig, DatasetConfig
from deepseek_jax.data.sets.faults import Faults
from deepseek_jax.data.sets.formats import CSV, PARQUET, Row, shards, splits_named
from deepseek_jax.data.sets.parquet_rows import parquet_rows
from deepseek_jax.data.sets.rows import check_readable, number, opened, rows_of
from deepseek_jax.data.sets.series import windows
from deepseek_jax.data.sets.source import Source
from deepseek_jax.errors import UserError


def read(path: pathlib.Path, config: DatasetConfig) -> Source:
    """The windows of the series in a file or directory; ids are the indices of their first values, from 0."""
    faults, column = Faults(path), config.columns.series
    check_readable(path)
    _check_alone(config.columns)
    if splits_named(path):
        raise UserError(f"dataset.name: a series is split by time, but the files in {path} are named after splits.")
    if faults.format == PARQUET:
        values = values_in_parquet(path, column, faults)
    else:
        values = _values_in_shards(path, column, faults)
    faults.check()
    source = windows(path.name, np.array(list(values.values())), config, season=1)
    return dataclasses.replace(source, names=(column,))


def _values_in_shards(path: pathlib.Path, column: str, faults: Faults) -> dict[int, float]:
    """Line -> value, through the files of a directory."""
    values, before = {}, 0
    for file in shards(path):
        faults.begin(file, before)
        with opened(file) as text:
            lines = list(text)
        values |= values_of(lines, faults.format, column, faults, before)
        before += len(lines)
    return values


def values_of(lines: Iterable[str], suffix: str, column: str, faults: Faults, before: int = 0) -> dict[int, float]:
    """Line -> value.  An empty line inside a .csv is a fault, as it may be a row whose value is missing.

    before: see rows_of.
    """
    lines = list(lines)
    values = _numbers(rows_of(lines, suffix, [column], faults, before), column, faults)
    for line in empty_rows(lines) if suffix == CSV else ():
        if before + line < max(values, default=0):
            faults.add(before + line, f"the line is empty; a series has a value of {column} in each")
    return values


def values_in_parquet(path: pathlib.Path, column: str, faults: Faults) -> dict[int, float]:
    """Number of the row -> value."""
    return _numbers(parquet_rows(path, [column], faults, whole=False), column, faults)


def _numbers(rows: Iterable[tuple[int, Row]], column: str, faults: Faults) -> dict[int, float]:
    return {line: number(faults, line, row, column) for line, row in rows}


def _check_alone(columns: ColumnsConfig):
    others = {
        name: getattr(columns, name) for name in ("text", "image", "features", "boxes", "label", "targets", "split")
    }
    for name, given in others.items():
        if given:
            raise UserError(
                f"dataset.columns.series is given, and dataset.columns.{name} too; leave one of them out: a series is "
                "both input and target, and is split by time."
            )
