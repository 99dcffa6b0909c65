"""The rows of a user's Parquet files, with the values that a .csv or .jsonl of them would have."""

import json
import pathlib
import re
import urllib.parse
from collections.abc import Iterator, Sequence

from deepseek_jax.data.dotted import top_key
from deepseek_jax.data.parquet import column_paths, opened_parquet
from deepseek_jax.data.sets.faults import Faults
from deepseek_jax.data.sets.formats import OTHERWISE, Row, shards
from deepseek_jax.errors import UserError

ROWS = 256  # read at once: a row may have a picture


def parquet_rows(path: pathlib.Path, needed: Sequence[str], faults: Faults, whole: bool) -> Iterator[tuple[int, Row]]:
    """Yields (number of the row from 1, row), through all files of a directory; with `whole` of all columns.

    UserError if a file lacks one of the columns `needed`, or is damaged.
    """
    row = 0
    for file in shards(path):
        faults.begin(file, row)
        with opened_parquet(file, lambda size: None, OTHERWISE) as stored:
            names, outside = stored.schema_arrow.names, _partition(path, file)
            _check_columns(file, stored.schema_arrow, needed, outside)
            wanted = None if whole else [top for name in needed if (top := top_key(names, name))]
            for batch in stored.iter_batches(ROWS, columns=wanted or None):
                columns = [_values(values, f"{file}: {name}") for name, values in zip(batch.schema.names, batch)]
                for values in zip(*columns):
                    row += 1
                    yield row, outside | dict(zip(batch.schema.names, values))


def _partition(path: pathlib.Path, file: pathlib.Path) -> Row:
    """The columns that the names of a file's directories give, inside that of the set: kind=cat/year=2024/a.parquet.

    So Hive and Spark write them (https://spark.apache.org/docs/latest/sql-data-sources-parquet.html).
    """
    pairs = (part.partition("=") for part in file.relative_to(path).parts[:-1] if "=" in part)
    return {name: _partition_value(urllib.parse.unquote(value)) for name, _, value in pairs}


def _partition_value(text: str) -> str | int | None:
    if text == "__HIVE_DEFAULT_PARTITION__":
        return None
    return int(text) if text.isdecimal() and str(int(text)) == text else text


def _check_columns(file: pathlib.Path, schema, needed: Sequence[str], outside: Row):
    names, paths = schema.names, [*column_paths(schema), *outside]
    for name in needed:
        if name not in paths:
            raise UserError(f"{file} has no column {name!r}; its columns are {', '.join(paths) or 'none'}.")
        if names.count(top_key(names, name)) > 1:
            raise UserError(f"{file} has several columns {name!r}; give each a name of its own.")


def _values(column, what: str) -> list:
    """The values of an Arrow array as Python has them, but times as texts, and float32 0.1 as 0.1, not 0.10000000149:
    so they are in a .csv."""
    import pyarrow

    kinds = pyarrow.types
    if kinds.is_dictionary(column.type):
        column = column.dictionary_decode()
    if kinds.is_temporal(column.type):
        return _times(column)
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        if kinds.is_nested(column.type):
            raise UserError(f"{what} has texts that are not UTF-8; save them in that encoding.") from None
        return column.cast(pyarrow.binary()).to_pylist()
    except (ValueError, OverflowError, ImportError) as error:
        raise UserError(f"{what} cannot be read: {error}.") from None
    if kinds.is_float32(column.type) or kinds.is_float16(column.type):
        kind = column.type.to_pandas_dtype()
        return [None if value is None else float(str(kind(value))) for value in values]
    return values


def _times(column) -> list[str | None]:
    import pyarrow

    try:
        texts = column.cast(pyarrow.string()).to_pylist()
    except pyarrow.ArrowException:  # a duration, or a time zone that is not known
        return [None if number is None else str(number) for number in column.cast(pyarrow.int64()).to_pylist()]
    return [None if text is None else re.sub(r"\.0+(?=\D*$)", "", text) for text in texts]


def as_csv(row: Row) -> dict[str, str]:
    """The row's texts in a .csv, as the module csv and pandas write them."""
    return {name: "" if value is None else str(value) for name, value in row.items()}


def columns_in(path: pathlib.Path) -> list[str]:
    """The columns of a file, or of the first in a directory, as dotted paths."""
    file = shards(path)[0]
    with opened_parquet(file, lambda size: None, OTHERWISE) as stored:
        return [*column_paths(stored.schema_arrow), *_partition(path, file)]


def class_names_in(path: pathlib.Path, column: str) -> tuple[str, ...]:
    """The names of the numbers in a column, which Hugging Face's datasets keeps in the metadata; () if it has none.

    UserError if the files of a directory differ in that.
    """
    found = {}
    for file in shards(path):
        with opened_parquet(file, lambda size: None, OTHERWISE) as stored:
            names = _names_in((stored.schema_arrow.metadata or {}).get(b"huggingface", b"{}"), column)
            found.setdefault(names, file)
    if len(found) > 1:
        first, second = list(found.values())[:2]
        raise UserError(f"{first} and {second} name other classes in {column}; leave one of them out.")
    return next(iter(found), ())


def _names_in(metadata: bytes, column: str) -> tuple[str, ...]:
    try:
        feature = _feature(json.loads(metadata)["info"]["features"], column)
        return tuple(map(str, feature["names"])) if feature["_type"] == "ClassLabel" else ()
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()


def _feature(features: dict, path: str) -> dict:
    """The description of what is under `path` in a dict of features, which may be nested in structs and lists."""
    key = top_key(features, path)
    found, below = features[key], path[len(key) + 1 :]
    while isinstance(found, list) or "feature" in found:  # a list of what is described in it
        found = found[0] if isinstance(found, list) else found["feature"]
    return _feature(found, below) if below else found
