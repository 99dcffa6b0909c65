"""A user's own set: a .csv with a header, a .jsonl or a .parquet, or a directory of such; the config names its columns.

A set is read completely or refused: no record is silently left out, and all faults are reported together, by line.
"""

import array
import csv
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from deepseek_jax.data.csv_rows import named
from deepseek_jax.data.dotted import value_at
from deepseek_jax.data.sets import own_boxes, own_series
from deepseek_jax.data.sets.config import ColumnsConfig, DatasetConfig
from deepseek_jax.data.sets.dataset import SPLITS, Records
from deepseek_jax.data.sets.faults import Faults
from deepseek_jax.data.sets.formats import CSV, PARQUET, Row, format_of, shards, splits_named
from deepseek_jax.data.sets.images import LOOKED_AT, decode_full_size, losses, resized, stack
from deepseek_jax.data.sets.labels import numbered_labels
from deepseek_jax.data.sets.own_boxes import Size
from deepseek_jax.data.sets.parquet_rows import as_csv, class_names_in, columns_in
from deepseek_jax.data.sets.rows import check_readable, number, opened, table_rows, text
from deepseek_jax.data.sets.source import Source
from deepseek_jax.data.sets.splitting import digest
from deepseek_jax.errors import UserError

COARSE = 0.1  # error of rounding a column to float32, as a share of its deviation, from which it is refused
_ENCODER = json.JSONEncoder(sort_keys=True)


@dataclasses.dataclass
class _Collected:
    """What is kept of the rows; a list has an entry for each of them, numbers one for each of its columns.

    rows: the columns of targets and splits that are no numbers, by line.
    origins: digests of whole rows or pictures' files, so that the choice of columns does not change a record's split.
    sizes: of the pictures as stored.  first: the files of the first pictures.
    """

    rows: dict[int, Row] = dataclasses.field(default_factory=dict)
    texts: list[str] = dataclasses.field(default_factory=list)
    pictures: list[np.ndarray | None] = dataclasses.field(default_factory=list)
    sizes: list[Size] = dataclasses.field(default_factory=list)
    first: list[bytes] = dataclasses.field(default_factory=list)
    features: array.array = dataclasses.field(default_factory=lambda: array.array("d"))
    targets: array.array = dataclasses.field(default_factory=lambda: array.array("d"))
    origins: list[bytes] = dataclasses.field(default_factory=list)


def read(path: pathlib.Path, config: DatasetConfig) -> Source:
    """Reads the set of one file or of a directory; ids are the numbers of its lines, or of its rows of Parquet.

    UserError for values that are missing or not as configured.
    """
    if config.columns.series:
        return own_series.read(path, config)
    columns, faults = config.columns, Faults(path)
    check_readable(path)
    input_kind, kind = _kinds(columns, path)
    by_file = {} if columns.split else splits_named(path)
    stored = class_names_in(path, columns.label) if columns.label and faults.format == PARQUET else ()
    found = table_rows(path, _needed(columns), faults, whole=input_kind != "image")
    kept = _collect(found, input_kind, config, faults)
    rows = kept.rows
    records: Records = {"ids": np.array(list(rows), np.int64)}
    class_names: tuple[str, ...] = ()
    if kind == "boxes":
        class_names, boxes = own_boxes.read(faults, rows, kept.sizes, columns, stored)
        records |= boxes
    elif kind == "classes":
        labels = [(line, row[columns.label]) for line, row in rows.items()]
        class_names, records["labels"] = numbered_labels(faults, labels, columns.label, columns.classes, stored)
    given = _splits(faults, rows, columns.split) if columns.split else None
    if by_file:
        given = np.array([by_file[faults.file(line)] for line in rows])
    faults.check()
    if not rows:
        raise UserError(f"{path} holds no record.")
    notes: tuple[str, ...] = ()
    if kind == "numbers":
        records["targets"] = _matrix(kept.targets, columns.targets, path)
    if input_kind == "image":
        notes = losses(kept.first, config)
        records["inputs"] = stack(kept.pictures, [faults.place(line) for line in rows], config)
    elif input_kind == "text":
        records["inputs"] = np.array(kept.texts, object)
    else:
        records["inputs"] = _matrix(kept.features, columns.features, path)
    return Source(
        name=path.name,
        kind=kind,
        input=input_kind,
        records=records,
        class_names=class_names,
        names=columns.features,
        target_names=columns.targets,
        given=given,
        origins=kept.origins,
        notes=notes,
    )


def _kinds(columns: ColumnsConfig, path: pathlib.Path) -> tuple[str, str]:
    if columns.boxes and not (columns.image and columns.label):
        raise UserError(
            "dataset.columns.boxes needs the columns of the pictures' files and of the boxes' classes, as in "
            f"dataset.columns.image=NAME and dataset.columns.label=NAME{_there(path)}."
        )
    if columns.boxes and format_of(path) == CSV:
        raise UserError(
            f"dataset.columns.boxes: a .csv such as {path} holds no lists; give boxes in a .jsonl or .parquet."
        )
    if len(columns.inputs) != 1:
        raise UserError(
            f"dataset.columns: name the input's column in one of text, image, features and series, as in "
            f"dataset.columns.text=NAME{_there(path)}."
        )
    if bool(columns.label) == bool(columns.targets):
        raise UserError(
            f"dataset.columns: name the target in one of label and targets, as in dataset.columns.label=NAME"
            f"{_there(path)}."
        )
    for key in ("features", "targets"):
        names = getattr(columns, key)
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"dataset.columns.{key} has {name!r} twice; name each column once.")
    for name in (columns.label, *columns.targets):
        if name in columns.features:
            raise UserError(
                f"dataset.columns: {name} is a target, and as a feature it would give itself away; take it out "
                "of dataset.columns.features."
            )
    return columns.inputs[0], "boxes" if columns.boxes else "classes" if columns.label else "numbers"


def _there(path: pathlib.Path) -> str:
    """The columns of a .csv or .parquet, for the end of an error message; "" if they cannot be read."""
    try:
        if format_of(path) == PARQUET:
            header = columns_in(path)
        else:
            with opened(shards(path)[0]) as lines:
                header = next(csv.reader(lines), []) if format_of(path) == CSV else []
    except (UserError, csv.Error):
        return ""
    return f"; the columns of {path} are {named(header)}" if header else ""


def _needed(columns: ColumnsConfig) -> list[str]:
    single = [columns.text, columns.image, columns.boxes, columns.label, columns.split]
    return [name for name in (*single, *columns.features, *columns.targets) if name]


def _collect(found: Iterable[tuple[int, Row]], kind: str, config: DatasetConfig, faults: Faults) -> _Collected:
    """Keeps only what is needed of each row while it is read."""
    columns, kept = config.columns, _Collected()
    single = [name for name in (columns.boxes, columns.label, columns.split) if name]
    as_written = as_csv if faults.format == PARQUET else lambda row: row
    for line, row in found:
        if kind == "image":
            _add_picture(kept, line, row, config, faults)
        else:
            kept.origins.append(digest(_ENCODER.encode(as_written(row)).encode()))
        if kind == "text":
            kept.texts.append(text(faults, line, row, columns.text))
        kept.features.extend([number(faults, line, row, name) for name in columns.features])
        kept.targets.extend([number(faults, line, row, name) for name in columns.targets])
        kept.rows[line] = {name: value_at(row, name) for name in single}
    return kept


def _matrix(numbers: array.array, names: Sequence[str], path: pathlib.Path) -> np.ndarray:
    """float32 [N C], a column for each of `names`; UserError if that rounds off what tells the numbers of one apart."""
    values = np.frombuffer(numbers, np.float64).reshape(-1, len(names))
    kept = values.astype(np.float32)
    rounded = (np.abs(values - kept).max(0) > COARSE * values.std(0)) & (values != values[0]).any(0)
    if rounded.any():
        raise UserError(
            f"{path}: {names[int(rounded.argmax())]} has numbers that float32, in which they are kept, hardly tells "
            "apart; give their differences from one of them instead."
        )
    return kept


def _add_picture(kept: _Collected, line: int, row: Row, config: DatasetConfig, faults: Faults):
    """Adds a row's picture in the configured size, its size as stored, and a digest of its file."""
    picture, data = picture_in(faults, line, row, config.columns.image, config)
    kept.pictures.append(None if picture is None else resized(picture, config))
    kept.sizes.append(None if picture is None else picture.shape[:2])
    kept.origins.append(digest(data))
    if len(kept.first) < LOOKED_AT:
        kept.first.append(data)


def picture_in(
    faults: Faults, line: int, row: Row, column: str, config: DatasetConfig
) -> tuple[np.ndarray | None, bytes]:
    """(a row's picture in full size, its file); (None, b"") and a fault if there is none that can be read.

    A table has the names of files, or, if it is Parquet, what they hold, alone or as {"bytes": ..., "path": ...}.
    """
    value = value_at(row, column)
    if isinstance(value, dict):  # a picture of Hugging Face's datasets
        value = value.get("bytes") or value.get("path", value)
    try:
        if isinstance(value, bytes):
            return decode_full_size(value, column, config), value
        name = text(faults, line, {column: value}, column)
        if name:
            folder = pathlib.Path(faults.path)
            file = (folder if folder.is_dir() else folder.parent) / name
            data = file.read_bytes()
            return decode_full_size(data, str(file), config), data
    except OSError as error:
        faults.add(line, f"cannot read {file}: {error.strerror}")
    except UserError as error:
        faults.add(line, str(error).rstrip("."))
    except ValueError:
        faults.add(line, f"{column} is {name!r}, which is not a valid file name")
    return None, b""


def _splits(faults: Faults, rows: dict[int, Row], column: str) -> np.ndarray:
    for line, row in rows.items():
        if row[column] not in SPLITS:
            faults.add(line, f"{column} is {row[column]!r}; it must be train, val or test")
    return np.array([str(row[column]) for row in rows.values()])
