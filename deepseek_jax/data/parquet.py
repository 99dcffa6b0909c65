"""Parquet files: opening them, and the rows of one column at a time."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator

from deepseek_jax.data.dotted import top_key, value_at
from deepseek_jax.data.opening import opened
from deepseek_jax.data.skipped import Skipped
from deepseek_jax.errors import UserError

ROWS = 64  # read at once: a row may be a whole book
NAMED = 10  # columns named when the one asked for is missing


def is_parquet(path: pathlib.Path) -> bool:
    return path.suffix.lower() == ".parquet"


@contextlib.contextmanager
def opened_parquet(path: pathlib.Path, count: Callable[[int], None], otherwise: str) -> Iterator:
    """Opens a file as a pyarrow.parquet.ParquetFile; `count` is given the numbers of bytes read from disk.

    UserError if the file is not Parquet, or damaged, even if that shows only in the middle; it says what can be done
    `otherwise`.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with opened(path, count, otherwise) as stored:
            yield pyarrow.parquet.ParquetFile(stored)
    except (pyarrow.ArrowException, UnicodeDecodeError):  # the latter for names of columns
        raise UserError(f"{path} is damaged or not Parquet; fetch it again, rename it, or {otherwise}.") from None


def parquet_values(path: pathlib.Path, field: str, skipped: Skipped) -> Iterator[tuple[int, object]]:
    """Yields (row from 1, its value in a column, or below it, see value_at); a file without it is skipped whole.

    UserError if the file is not Parquet, or damaged.
    """
    with opened_parquet(path, skipped.count, "remove it from the source") as file:
        known = column_paths(file.schema_arrow)
        if field not in known:
            skipped.add(path, 1, f"no column {field!r} among {', '.join(known[:NAMED])}")
            return
        column = top_key(file.schema_arrow.names, field)
        if file.schema_arrow.names.count(column) > 1:
            skipped.add(path, 1, f"several columns {column!r}")
            return
        cells = (cell for batch in file.iter_batches(ROWS, columns=[column]) for cell in batch.column(column))
        for row, cell in enumerate(cells, 1):
            try:
                value = value_at({column: cell.as_py()}, field)
                yield row, value.decode() if isinstance(value, bytes) else value  # some writers do not mark texts
            except UnicodeDecodeError:
                skipped.add(path, row, "not UTF-8")
            except (ValueError, OverflowError):  # a time that Python cannot express
                yield row, None


def column_paths(schema) -> list[str]:
    """The columns of a pyarrow.Schema, each followed by the dotted paths of what is nested in it (`value_at`)."""
    return [path for field in schema for path in (field.name, *_paths_below(field.name, field.type))]


def _paths_below(path: str, kind) -> Iterator[str]:
    from pyarrow import types

    if types.is_struct(kind):
        for field in kind:
            yield f"{path}.{field.name}"
            yield from _paths_below(f"{path}.{field.name}", field.type)
    elif types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        yield from _paths_below(path, kind.value_type)
