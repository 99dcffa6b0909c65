"""A user's own set: a .csv with a header, or a .jsonl; the config says what its columns are.

Faults are said together, with file and line, and nothing is left out in silence: a set is read whole or refused.
"""

import csv
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from deepseek_jax.data.documents import is_jsonl
from deepseek_jax.data.sets.config import ColumnsConfig, DatasetConfig
from deepseek_jax.data.sets.dataset import SPLITS, Records
from deepseek_jax.data.sets.faults import Faults
from deepseek_jax.data.sets.images import decode, stack
from deepseek_jax.data.sets.source import Source
from deepseek_jax.errors import UserError

Row = dict[str, object]  # column -> text (csv) or any value (jsonl)
HALVED = "holds half of a character (a surrogate), which is no text; mend the record or take it out"
LARGEST = float(np.finfo(np.float32).max)  # of numbers, which networks hold in float32


def read(path: pathlib.Path, config: DatasetConfig) -> Source:
    """The set of one file; ids are its line numbers.  UserError for what is missing, no number, no image, no class."""
    columns, faults, suffix = config.columns, Faults(path), path.suffix.lower()
    try:
        with path.open(encoding="utf-8-sig", newline="" if suffix == ".csv" else None) as lines:
            input_kind, kind = _kinds(columns, path)
            rows = dict(rows_of(lines, suffix, _needed(columns), faults))
    except FileNotFoundError:
        raise UserError(f"dataset.name: there is no file {path}.") from None
    except OSError as error:
        raise UserError(f"dataset.name: {path} cannot be read ({error.strerror}); name a file.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8; save it in that encoding.") from None
    records: Records = {"ids": np.array(list(rows), np.int64), "inputs": _inputs(faults, rows, input_kind, config)}
    class_names: tuple[str, ...] = ()
    if kind == "classes":
        class_names, records["labels"] = _labels(faults, rows, columns)
    else:
        records["targets"] = _numbers(faults, rows, columns.targets)
    given = _splits(faults, rows, columns.split) if columns.split else None
    faults.check()
    if not rows:
        raise UserError(f"{path} holds no record.")
    if input_kind == "image":
        records["inputs"] = stack(records["inputs"], config)
    return Source(
        name=path.name,
        kind=kind,
        input=input_kind,
        records=records,
        class_names=class_names,
        names=columns.features,
        target_names=columns.targets,
        given=given,
    )


def _kinds(columns: ColumnsConfig, path: pathlib.Path) -> tuple[str, str]:
    inputs = {"text": columns.text, "image": columns.image, "table": columns.features}
    given = [kind for kind, named in inputs.items() if named]
    if len(given) != 1:
        raise UserError(
            f"dataset.columns: name the input's column in one of text, image and features, as in "
            f"dataset.columns.text=NAME{_there(path)}."
        )
    if bool(columns.label) == bool(columns.targets):
        raise UserError(
            f"dataset.columns: name what is asked for in one of label and targets, as in dataset.columns.label=NAME"
            f"{_there(path)}."
        )
    for name in (columns.label, *columns.targets):
        if name in columns.features:
            raise UserError(
                f"dataset.columns: {name} is asked for, and among the features it would answer itself; take it out "
                "of dataset.columns.features."
            )
    return given[0], "classes" if columns.label else "numbers"


def _there(path: pathlib.Path) -> str:
    """Which columns a .csv has, for the end of a sentence; "" where that cannot be told."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            header = next(csv.reader(lines), []) if path.suffix.lower() == ".csv" else []
    except (OSError, UnicodeDecodeError, csv.Error):
        return ""
    return f"; the columns of {path} are {', '.join(header)}" if header else ""


def _needed(columns: ColumnsConfig) -> list[str]:
    single = [columns.text, columns.image, columns.label, columns.split]
    return [name for name in (*single, *columns.features, *columns.targets) if name]


def rows_of(lines: Iterable[str], suffix: str, needed: list[str], faults: Faults) -> Iterator[tuple[int, Row]]:
    """The records of a file by their line, those left out that are none or lack one of the columns `needed`.

    `lines` as the file has them, ends included; `suffix` is one of READERS.
    """
    return READERS[suffix](lines, needed, faults)


def _csv_rows(lines: Iterable[str], needed: list[str], faults: Faults) -> Iterator[tuple[int, Row]]:
    reader = csv.DictReader(lines, strict=True)
    try:
        header = reader.fieldnames or ()
        for name in needed:
            if name not in header:
                raise UserError(f"{faults.path} has no column {name!r}; its columns are {', '.join(header) or 'none'}.")
            if list(header).count(name) > 1:
                raise UserError(f"{faults.path} has several columns {name!r}; give each a name of its own.")
        for row in reader:
            if None in row or None in row.values():
                faults.add(reader.line_num, "the row has not as many fields as the header")
            else:
                yield reader.line_num, row
    except csv.Error as error:  # where the next record begins is not known then
        faults.add(reader.line_num, f"{error}; what follows is not read")


def _jsonl_rows(lines: Iterable[str], needed: list[str], faults: Faults) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            faults.add(number, "broken JSON")
            continue
        missing = [name for name in needed if not isinstance(row, dict) or name not in row]
        if missing:
            faults.add(number, f"no key {missing[0]!r}")
        else:
            yield number, row


READERS: dict[str, Callable[[Iterable[str], list[str], Faults], Iterator[tuple[int, Row]]]] = {
    ".csv": _csv_rows,
    ".jsonl": _jsonl_rows,
}


def _inputs(faults: Faults, rows: dict[int, Row], kind: str, config: DatasetConfig) -> np.ndarray | list[np.ndarray]:
    """Of pictures a list, as their sizes may differ."""
    columns = config.columns
    if kind == "table":
        return _numbers(faults, rows, columns.features)
    if kind == "text":
        texts = [text(faults, line, row, columns.text) for line, row in rows.items()]
        return np.array([*texts, None], object)[:-1]  # of texts alone, NumPy might make another kind of array
    return [_picture(faults, line, row, config) for line, row in rows.items()]


def text(faults: Faults, line: int, row: Row, column: str) -> str:
    """What is no text becomes "" and a fault."""
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        faults.add(line, f"{column} is {value!r}; it must be text")
    elif not _is_whole(value):
        faults.add(line, f"{column} {HALVED}")
    else:
        return value
    return ""


def _is_whole(text: str) -> bool:
    """JSON can spell half of a surrogate pair, which no encoding of text holds."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _picture(faults: Faults, line: int, row: Row, config: DatasetConfig) -> np.ndarray | None:
    name = text(faults, line, row, config.columns.image)
    if not name:
        return None
    file = pathlib.Path(faults.path).parent / name
    try:
        return decode(file.read_bytes(), str(file), config)
    except OSError as error:
        faults.add(line, f"{file} cannot be read ({error.strerror})")
    except UserError as error:
        faults.add(line, str(error).rstrip("."))
    return None


def _numbers(faults: Faults, rows: dict[int, Row], columns: tuple[str, ...]) -> np.ndarray:
    """float32 [N C]."""
    values = np.zeros((len(rows), len(columns)), np.float32)
    for place, (line, row) in enumerate(rows.items()):
        for channel, column in enumerate(columns):
            values[place, channel] = number(faults, line, row, column)
    return values


def number(faults: Faults, line: int, row: Row, column: str) -> float:
    """What is no number, or none that float32 holds, becomes 0 and a fault."""
    value = row[column]
    try:
        # float() would also take JSON's true, and the text "40"; of a .csv all is text.
        if isinstance(value, bool) or (isinstance(value, str) and is_jsonl(faults.path)):
            raise ValueError
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        faults.add(line, f"{column} is {value!r}; it must be a number")
        return 0.0
    if abs(found) <= LARGEST:
        return found
    faults.add(line, f"{column} is {found}; mend the record or take it out")
    return 0.0


def _labels(faults: Faults, rows: dict[int, Row], columns: ColumnsConfig) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names, in the order of numbers where all are whole numbers, and int32 [N]."""
    labels = {line: str(row[columns.label]).strip() for line, row in rows.items()}
    names = columns.classes or sorted(set(labels.values()), key=_number_first)
    number_of = {name: number for number, name in enumerate(names)}
    for line, label in labels.items():
        if not label or rows[line][columns.label] is None:
            faults.add(line, f"{columns.label} is empty; every record needs a label")
        elif not _is_whole(label):
            faults.add(line, f"{columns.label} {HALVED}")
        elif label not in number_of:
            known = ", ".join(names)
            faults.add(line, f"{columns.label} is {label!r}, which is none of dataset.columns.classes ({known})")
    return tuple(names), np.array([number_of.get(label, 0) for label in labels.values()], np.int32)


def _number_first(name: str) -> tuple:
    return (0, int(name), name) if name.isdecimal() else (1, 0, name)


def _splits(faults: Faults, rows: dict[int, Row], column: str) -> np.ndarray:
    for line, row in rows.items():
        if row[column] not in SPLITS:
            faults.add(line, f"{column} is {row[column]!r}; it must be train, val or test")
    return np.array([str(row[column]) for row in rows.values()])
