"""A user's own set: a .csv with a header, or a .jsonl; the config says what its columns are.

Every fault is said with its file and line, and nothing is left out in silence: a set is read whole or refused.
"""

import csv
import json
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from deepseek_jax.data.sets.config import ColumnsConfig, DatasetConfig
from deepseek_jax.data.sets.dataset import SPLITS, Records
from deepseek_jax.data.sets.images import decode, stack
from deepseek_jax.data.sets.source import Source
from deepseek_jax.errors import UserError

Row = dict[str, object]  # column -> text (csv) or any value (jsonl)
LARGEST = float(np.finfo(np.float32).max)  # of numbers, which networks hold in float32


def read(path: pathlib.Path, config: DatasetConfig) -> Source:
    """The set of one file; ids are its line numbers.  UserError for what is missing, no number, no image, no class."""
    columns = config.columns
    input_kind, kind = _kinds(columns)
    try:
        rows = dict(READERS[path.suffix](path, _needed(columns)))
    except FileNotFoundError:
        raise UserError(f"dataset.name: there is no file {path}.") from None
    except OSError as error:
        raise UserError(f"dataset.name: {path} cannot be read ({error.strerror}); name a file.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8; save it in that encoding.") from None
    if not rows:
        raise UserError(f"{path} holds no record.")
    records: Records = {"ids": np.array(list(rows), np.int64), "inputs": _inputs(path, rows, input_kind, config)}
    class_names: tuple[str, ...] = ()
    if kind == "classes":
        class_names, records["labels"] = _labels(path, rows, columns)
    else:
        records["targets"] = _numbers(path, rows, columns.targets)
    return Source(
        name=path.name,
        kind=kind,
        input=input_kind,
        records=records,
        class_names=class_names,
        names=columns.features,
        target_names=columns.targets,
        given=_splits(path, rows, columns.split) if columns.split else None,
    )


def _kinds(columns: ColumnsConfig) -> tuple[str, str]:
    inputs = {"text": columns.text, "image": columns.image, "table": columns.features}
    given = [kind for kind, named in inputs.items() if named]
    if len(given) != 1:
        raise UserError("dataset.columns: name the input's column in one of text, image and features.")
    if bool(columns.label) == bool(columns.targets):
        raise UserError("dataset.columns: name what is asked for in one of label and targets.")
    return given[0], "classes" if columns.label else "numbers"


def _needed(columns: ColumnsConfig) -> list[str]:
    single = [columns.text, columns.image, columns.label, columns.split]
    return [name for name in (*single, *columns.features, *columns.targets) if name]


def _csv_rows(path: pathlib.Path, needed: list[str]) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            header = reader.fieldnames or ()
            for name in needed:
                if name not in header:
                    raise UserError(f"{path} has no column {name!r}; its columns are {', '.join(header) or 'none'}.")
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(f"{path} line {reader.line_num}: the row has not as many fields as the header.")
                yield reader.line_num, row
        except csv.Error as error:
            raise UserError(f"{path} line {reader.line_num}: {error}.") from None


def _jsonl_rows(path: pathlib.Path, needed: list[str]) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise UserError(f"{path} line {number}: broken JSON.") from None
            for name in needed:
                if not isinstance(row, dict) or name not in row:
                    raise UserError(f"{path} line {number} has no key {name!r}.")
            yield number, row


READERS: dict[str, Callable[[pathlib.Path, list[str]], Iterator[tuple[int, Row]]]] = {
    ".csv": _csv_rows,
    ".jsonl": _jsonl_rows,
}


def _inputs(path: pathlib.Path, rows: dict[int, Row], kind: str, config: DatasetConfig) -> np.ndarray:
    columns = config.columns
    if kind == "table":
        return _numbers(path, rows, columns.features)
    if kind == "text":
        texts = [_text(path, line, row, columns.text) for line, row in rows.items()]
        return np.array([*texts, None], object)[:-1]  # of texts alone, NumPy might make another kind of array
    pictures = []
    for line, row in rows.items():
        file = path.parent / _text(path, line, row, columns.image)
        try:
            pictures.append(decode(file.read_bytes(), f"{path} line {line}: {file}", config))
        except OSError as error:
            raise UserError(f"{path} line {line}: {file} cannot be read ({error.strerror}).") from None
    return stack(pictures, config)


def _text(path: pathlib.Path, line: int, row: Row, column: str) -> str:
    if not isinstance(row[column], str) or not row[column].strip():
        raise UserError(f"{path} line {line}: {column} is {row[column]!r}; it must be text.")
    return row[column]


def _numbers(path: pathlib.Path, rows: dict[int, Row], columns: tuple[str, ...]) -> np.ndarray:
    """float32 [N C]."""
    values = np.empty((len(rows), len(columns)), np.float32)
    for place, (line, row) in enumerate(rows.items()):
        for channel, column in enumerate(columns):
            try:
                number = float(row[column])
            except (TypeError, ValueError, OverflowError):
                raise UserError(f"{path} line {line}: {column} is {row[column]!r}; it must be a number.") from None
            if not abs(number) <= LARGEST:
                raise UserError(f"{path} line {line}: {column} is {number}; mend the record or take it out.")
            values[place, channel] = number
    return values


def _labels(path: pathlib.Path, rows: dict[int, Row], columns: ColumnsConfig) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names, in the order of numbers where all are whole numbers, and int32 [N]."""
    labels = {line: str(row[columns.label]).strip() for line, row in rows.items()}
    names = columns.classes or sorted(set(labels.values()), key=_number_first)
    number_of = {name: number for number, name in enumerate(names)}
    for line, label in labels.items():
        if not label or rows[line][columns.label] is None:
            raise UserError(f"{path} line {line}: {columns.label} is empty; every record needs a label.")
        if label not in number_of:
            raise UserError(
                f"{path} line {line}: {columns.label} is {label!r}, which is none of dataset.columns.classes "
                f"({', '.join(names)})."
            )
    return tuple(names), np.array([number_of[label] for label in labels.values()], np.int32)


def _number_first(name: str) -> tuple:
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)


def _splits(path: pathlib.Path, rows: dict[int, Row], column: str) -> np.ndarray:
    for line, row in rows.items():
        if row[column] not in SPLITS:
            raise UserError(f"{path} line {line}: {column} is {row[column]!r}; it must be train, val or test.")
    return np.array([row[column] for row in rows.values()])
