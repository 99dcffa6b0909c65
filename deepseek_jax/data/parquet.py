"""Rows of Parquet files, one column of them at a time."""

import pathlib
from collections.abc import Iterator

from deepseek_jax.data.opening import opened
from deepseek_jax.data.skipped import Skipped
from deepseek_jax.errors import UserError

ROWS = 64  # read at once: a row may be a whole book
NAMED = 10  # columns named when the one asked for is missing


def is_parquet(path: pathlib.Path) -> bool:
    return path.suffix.lower() == ".parquet"


def parquet_values(path: pathlib.Path, column: str, skipped: Skipped) -> Iterator[tuple[int, object]]:
    """Yields (row from 1, its value in the column); a file without the column is skipped whole.

    UserError if the file is not Parquet, or damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with opened(path, skipped.count) as stored:
            file = pyarrow.parquet.ParquetFile(stored)
            names = file.schema_arrow.names
            if column not in names:
                skipped.add(path, 1, f"no column {column!r} among {', '.join(names[:NAMED])}")
                return
            cells = (cell for batch in file.iter_batches(ROWS, columns=[column]) for cell in batch.column(0))
            for row, cell in enumerate(cells, 1):
                try:
                    value = cell.as_py()
                    yield row, value.decode() if isinstance(value, bytes) else value  # some writers do not mark texts
                except UnicodeDecodeError:
                    skipped.add(path, row, "not UTF-8")
    except pyarrow.ArrowException:
        raise UserError(
            f"{path} is damaged or not Parquet; fetch it again, rename it, or remove it from the source."
        ) from None
