"""A user's own time series: a .csv or .jsonl whose rows hold its values in order of time."""

import dataclasses
import pathlib
from collections.abc import Iterable

import numpy as np

from deepseek_jax.data.sets.config import ColumnsConfig, DatasetConfig
from deepseek_jax.data.sets.faults import Faults
from deepseek_jax.data.sets.rows import empty_rows, number, opened, rows_of
from deepseek_jax.data.sets.series import windows
from deepseek_jax.data.sets.source import Source
from deepseek_jax.errors import UserError


def read(path: pathlib.Path, config: DatasetConfig) -> Source:
    """The windows of one file's series; ids are the indices of their first values, from 0."""
    faults, column = Faults(path), config.columns.series
    with opened(path) as lines:
        _check_alone(config.columns)
        values = values_of(lines, path.suffix.lower(), column, faults)
    faults.check()
    source = windows(path.name, np.array(list(values.values())), config, season=1)
    return dataclasses.replace(source, names=(column,))


def values_of(lines: Iterable[str], suffix: str, column: str, faults: Faults) -> dict[int, float]:
    """Line -> value.  An empty line inside a .csv is a fault, as it may be a row whose value is missing."""
    lines = list(lines)
    values = {line: number(faults, line, row, column) for line, row in rows_of(lines, suffix, [column], faults)}
    for line in empty_rows(lines) if suffix == ".csv" else ():
        if line < max(values, default=0):
            faults.add(line, f"the line is empty; a series has a value of {column} in each")
    return values


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
