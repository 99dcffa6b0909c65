"""A user's own set: a .csv with a header, or a .jsonl; the config names its columns.

A set is read completely or refused: no record is silently left out, and all faults are reported together, by line.
"""

import array
import csv
import json
import pathlib
from collections.abc import Iterable

import numpy as np

from deepseek_jax.data.sets import own_boxes, own_series
from deepseek_jax.data.sets.config import ColumnsConfig, DatasetConfig
from deepseek_jax.data.sets.dataset import SPLITS, Records
from deepseek_jax.data.sets.faults import Faults
from deepseek_jax.data.sets.images import colours_dropped, decode_full_size, resized, stack
from deepseek_jax.data.sets.labels import numbered_labels
from deepseek_jax.data.sets.own_boxes import Size
from deepseek_jax.data.sets.rows import Row, named, number, opened, rows_of, text
from deepseek_jax.data.sets.source import Source
from deepseek_jax.data.sets.splitting import digest
from deepseek_jax.errors import UserError

_ENCODER = json.JSONEncoder(sort_keys=True)


def read(path: pathlib.Path, config: DatasetConfig) -> Source:
    """Reads the set of one file; ids are line numbers.  UserError for values that are missing or not as configured."""
    if config.columns.series:
        return own_series.read(path, config)
    columns, faults = config.columns, Faults(path)
    with opened(path) as lines:
        input_kind, kind = _kinds(columns, path)
        found = rows_of(lines, path.suffix.lower(), _needed(columns), faults)
        rows, inputs, targets, origins = _collect_needed(found, input_kind, columns, faults)
    sizes: list[Size] = []
    if input_kind == "image":
        pictures = [_picture(faults, line, row, config) for line, row in rows.items()]
        inputs, sizes, origins = map(list, zip(*pictures, strict=True)) if pictures else ([], [], [])
    records: Records = {"ids": np.array(list(rows), np.int64), "inputs": inputs}
    class_names: tuple[str, ...] = ()
    if kind == "boxes":
        class_names, boxes = own_boxes.read(faults, rows, sizes, columns)
        records |= boxes
    elif kind == "classes":
        labels = [(line, row[columns.label]) for line, row in rows.items()]
        class_names, records["labels"] = numbered_labels(faults, labels, columns.label, columns.classes)
    else:
        records["targets"] = targets
    given = _splits(faults, rows, columns.split) if columns.split else None
    faults.check()
    if not rows:
        raise UserError(f"{path} holds no record.")
    notes: tuple[str, ...] = ()
    if input_kind == "image":
        files = (path.parent / str(row[columns.image]) for row in rows.values())
        notes = colours_dropped((file.read_bytes() for file in files), config)
        records["inputs"] = stack(records["inputs"], [f"line {line}" for line in rows], config)
    return Source(
        name=path.name,
        kind=kind,
        input=input_kind,
        records=records,
        class_names=class_names,
        names=columns.features,
        target_names=columns.targets,
        given=given,
        origins=origins,
        notes=notes,
    )


def _kinds(columns: ColumnsConfig, path: pathlib.Path) -> tuple[str, str]:
    if columns.boxes and not (columns.image and columns.label):
        raise UserError(
            "dataset.columns.boxes needs the columns of the pictures' files and of the boxes' classes, as in "
            f"dataset.columns.image=NAME and dataset.columns.label=NAME{_there(path)}."
        )
    if columns.boxes and path.suffix.lower() == ".csv":
        raise UserError(f"dataset.columns.boxes: a .csv such as {path} holds no lists; give boxes in a .jsonl.")
    inputs = {"text": columns.text, "image": columns.image, "table": columns.features}
    given = [kind for kind, named in inputs.items() if named]
    if len(given) != 1:
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
    return given[0], "boxes" if columns.boxes else "classes" if columns.label else "numbers"


def _there(path: pathlib.Path) -> str:
    """The columns of a .csv, for the end of an error message; "" if they cannot be read."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            header = next(csv.reader(lines), []) if path.suffix.lower() == ".csv" else []
    except (OSError, UnicodeDecodeError, csv.Error):
        return ""
    return f"; the columns of {path} are {named(header)}" if header else ""


def _needed(columns: ColumnsConfig) -> list[str]:
    single = [columns.text, columns.image, columns.boxes, columns.label, columns.split]
    return [name for name in (*single, *columns.features, *columns.targets) if name]


def _collect_needed(
    found: Iterable[tuple[int, Row]], kind: str, columns: ColumnsConfig, faults: Faults
) -> tuple[dict[int, Row], np.ndarray | None, np.ndarray, list[bytes]]:
    """Keeps only what is needed of each record read: (line -> row of the single columns, inputs, targets, digests).

    Inputs are texts or float32 [N C]; pictures are read later, from their rows.  Digests are of whole rows, so that
    the choice of columns does not change a record's split.
    """
    single = [name for name in (columns.image, columns.boxes, columns.label, columns.split) if name]
    rows, texts, origins = {}, [], []
    features, targets = array.array("f"), array.array("f")
    for line, row in found:
        if kind != "image":
            origins.append(digest(_ENCODER.encode(row).encode()))
        if kind == "text":
            texts.append(text(faults, line, row, columns.text))
        features.extend([number(faults, line, row, name) for name in columns.features])
        targets.extend([number(faults, line, row, name) for name in columns.targets])
        rows[line] = {name: row[name] for name in single}
    inputs = {"text": np.array(texts, object), "table": _matrix(features, len(rows))}.get(kind)
    return rows, inputs, _matrix(targets, len(rows)), origins


def _matrix(numbers: array.array, count: int) -> np.ndarray:
    """float32 [count C]"""
    return np.frombuffer(numbers, np.float32).reshape(count, -1) if count else np.zeros((0, 0), np.float32)


def _picture(faults: Faults, line: int, row: Row, config: DatasetConfig) -> tuple[np.ndarray | None, Size, bytes]:
    """(the picture in the configured size, its size in the file, a digest of the file); (None, None, b"") if faulty."""
    name = text(faults, line, row, config.columns.image)
    if not name:
        return None, None, b""
    file = pathlib.Path(faults.path).parent / name
    try:
        data = file.read_bytes()
        picture = decode_full_size(data, str(file), config)
        return resized(picture, config), picture.shape[:2], digest(data)
    except OSError as error:
        faults.add(line, f"cannot read {file}: {error.strerror}")
    except UserError as error:
        faults.add(line, str(error).rstrip("."))
    except ValueError:
        faults.add(line, f"{config.columns.image} is {name!r}, which is not a valid file name")
    return None, None, b""


def _splits(faults: Faults, rows: dict[int, Row], column: str) -> np.ndarray:
    for line, row in rows.items():
        if row[column] not in SPLITS:
            faults.add(line, f"{column} is {row[column]!r}; it must be train, val or test")
    return np.array([str(row[column]) for row in rows.values()])
