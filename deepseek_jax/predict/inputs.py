"""Reads new inputs for a trained hybrid network from files, by the columns that it was trained on."""

import contextlib
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from deepseek_jax.data.opening import opened
from deepseek_jax.data.plain_text import numbered_lines
from deepseek_jax.data.sets.config import ColumnsConfig, DatasetConfig, ImagesConfig
from deepseek_jax.data.sets.faults import Faults
from deepseek_jax.data.sets.files import picture_in
from deepseek_jax.data.sets.formats import CSV, FORMATS, JSONL, PARQUET, format_of
from deepseek_jax.data.sets.images import decode, resized
from deepseek_jax.data.sets.own_series import values_in_parquet, values_of
from deepseek_jax.data.sets.parquet_rows import parquet_rows
from deepseek_jax.data.sets.rows import number, rows_of, text
from deepseek_jax.errors import UserError
from deepseek_jax.train.checkpoints.dataset_record import DatasetRecord


def read(paths: Sequence[str], known: DatasetRecord, columns: ColumnsConfig) -> tuple[list[dict], Sequence]:
    """(places, inputs): where each input comes from, {"file", "line"}, and the inputs for Predictor.predict.

    `columns`: those of the training's dataset.  UserError listing all faults of a file.
    """
    return READERS[known.model.input](paths, known, columns)


def _images(paths: Sequence[str], known: DatasetRecord, columns: ColumnsConfig):
    """Picture files, and those in the image column of each table."""
    sizes = {name: getattr(known.model, name) for name in ("height", "width", "channels")}
    config = DatasetConfig(images=ImagesConfig(**sizes))

    def picture(*place):
        found, _ = picture_in(*place, columns.image, config)
        return None if found is None else resized(found, config)

    places, images = [], []
    for path in paths:
        if not format_of(path):
            places.append({"file": path})
            images.append(decode(_bytes(path), path, config))
        elif columns.image:
            found = _records(path, [columns.image], picture)
            places += [{"file": path, "line": line} for line in found]
            images += found.values()
        else:
            raise UserError(f"{path} is a table, but this network takes pictures; give the picture files themselves.")
    if not images:
        raise UserError("there is no picture to predict for.")
    return places, np.stack(images)


def _texts(paths: Sequence[str], known: DatasetRecord, columns: ColumnsConfig):
    """The text column of each table, the lines of any other file."""

    def by_line(path):
        return _column(path, columns) if format_of(path) else numbered_lines(_text(path))

    places, texts = _in_order(paths, by_line)
    if not texts:
        raise UserError("there is no text to predict for; write one per line.")
    return places, texts


def _column(path: str, columns: ColumnsConfig) -> dict[int, str]:
    if not columns.text:
        raise UserError(
            f"{path} is a table, but dataset.columns.text of the training names no column of texts; give files with a "
            f"text per line, whose names do not end in {' or '.join(FORMATS)}."
        )
    return _records(path, [columns.text], lambda *place: text(*place, columns.text))


def _tables(paths: Sequence[str], known: DatasetRecord, columns: ColumnsConfig):
    def numbers(*place):
        return [number(*place, name) for name in known.names]

    places, rows = _in_order(paths, lambda path: _records(path, known.names, numbers))
    if not rows:
        raise UserError("there is no row to predict for.")
    return places, rows


def _series(paths: Sequence[str], known: DatasetRecord, columns: ColumnsConfig):
    """The last window of each table; its place is the line of its last value."""
    (column,), length = known.names, known.model.length
    places, windows = [], []
    for path in paths:
        faults = Faults(path)
        if faults.format == PARQUET:
            values = values_in_parquet(Path(path), column, faults)
        else:
            values = values_of(*_lines(path), column, faults)
        faults.check()
        if len(values) < length:
            raise UserError(f"{path} has {len(values)} values of {column}; this network forecasts from {length}.")
        places.append({"file": path, "line": max(values)})
        windows.append(list(values.values())[-length:])
    return places, np.array(windows)[..., None]


READERS = {"image": _images, "text": _texts, "table": _tables, "series": _series}


def _records(path: str, needed: Sequence[str], value_of: Callable) -> dict:
    """{line: value_of(faults, line, row)} for the records of a table; UserError lists all faults."""
    faults = Faults(path)
    if faults.format == PARQUET:
        rows = parquet_rows(Path(path), needed, faults, whole=False)
    else:
        rows = rows_of(*_lines(path), list(needed), faults)
    found = {line: value_of(faults, line, row) for line, row in rows}
    faults.check()
    return found


def _lines(path: str) -> tuple[io.StringIO, str]:
    """The arguments of `rows_of` for a file: its lines, and the suffix that says how to read them."""
    return io.StringIO(_text(path), newline=""), JSONL if format_of(path) == JSONL else CSV


def _in_order(paths: Sequence[str], by_line: Callable[[str], dict]) -> tuple[list[dict], list]:
    """(places, inputs) from the {line: input} that `by_line` returns for each path."""
    found = [(path, line, each) for path in paths for line, each in by_line(path).items()]
    return [{"file": path, "line": line} for path, line, _ in found], [each for *_, each in found]


def _text(path: str) -> str:
    data = sys.stdin.buffer.read() if path == "-" else _unpacked(path)
    if b"\0" in data:
        raise UserError(f"{path} is not text in UTF-8, as it holds zero bytes; give texts or a table, saved as UTF-8.")
    try:
        return data.decode("utf-8-sig")  # spreadsheets put a byte order mark (BOM) before the first name
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} is not UTF-8 in line {line}; save it in that encoding.") from None


def _unpacked(path: str) -> bytes:
    """What a file holds, which may be compressed."""
    with _reading(path):
        Path(path).open("rb").close()
    with opened(Path(path), lambda size: None, "leave it out") as file:
        return file.read()


def _bytes(path: str) -> bytes:
    with _reading(path):
        return Path(path).read_bytes()


@contextlib.contextmanager
def _reading(path: str):
    try:
        yield
    except IsADirectoryError:
        raise UserError(f"{path} is a directory; give the files in it, such as {Path(path) / '*'}.") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
