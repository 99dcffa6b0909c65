"""The formats of a user's tables, by the names of files; and directories of them, as data sets are published."""

import collections
import pathlib
import re

from deepseek_jax.data.documents import files_below
from deepseek_jax.data.opening import plain_name
from deepseek_jax.data.parquet import is_parquet
from deepseek_jax.errors import UserError

CSV, JSONL, PARQUET = FORMATS = (".csv", ".jsonl", ".parquet")
NAMED = "a .csv, .jsonl or .parquet"  # for messages
OTHERWISE = "name another"  # what can be done about a file that cannot be read
SPLIT_OF = {  # a word in the names of files -> the split of their records
    **{"train": "train", "training": "train", "test": "test", "testing": "test"},
    **dict.fromkeys(("validation", "valid", "val", "dev"), "val"),
}

Row = dict[str, object]  # column -> text (.csv) or any value


def format_of(path: str | pathlib.Path) -> str | None:
    """One of FORMATS, by the name of a table without that of its compression; None if it is not named as one.

    For a directory that of its files: PARQUET if it has any of these, else CSV or JSONL, unless it has both.
    """
    path = pathlib.Path(path)
    return _in_directory(path)[0] if path.is_dir() else _named(path)


def shards(path: pathlib.Path) -> list[pathlib.Path]:
    """The files of a table: the file itself, or those in a directory that have its format, sorted, no hidden ones."""
    return _in_directory(path)[1] if path.is_dir() else [path]


def _in_directory(path: pathlib.Path) -> tuple[str | None, list[pathlib.Path]]:
    tables = collections.defaultdict(list)
    for file in files_below(path):
        tables[_named(file)].append(file)
    tables.pop(None, None)
    kind = PARQUET if PARQUET in tables else next(iter(tables)) if len(tables) == 1 else None
    return kind, tables.get(kind, [])


def _named(path: pathlib.Path) -> str | None:
    kinds = {".csv": CSV, ".jsonl": JSONL, ".ndjson": JSONL}
    return PARQUET if is_parquet(path) else kinds.get(pathlib.Path(plain_name(path)).suffix)


def splits_named(path: pathlib.Path) -> dict[str, str]:
    """The split of each of the shards in a directory by its name there, if all have one: test-00000-of-00001.parquet.

    {} if none has, or for a file.  UserError if only some have, or if one has several.
    """
    found = {}
    for file in shards(path) if path.is_dir() else ():
        name = str(file.relative_to(path))
        words = re.split("[^a-z]+", name.lower())
        found[name] = sorted({SPLIT_OF[word] for word in words if word in SPLIT_OF})
    if not any(found.values()):
        return {}
    for name, named in found.items():
        if len(named) != 1:
            what = f"several splits ({', '.join(named)})" if named else "no split, and other files there do"
            raise UserError(
                f"dataset.name: in {path}, the name of {name} has {what}; name each file after "
                "one of train, val and test, or move it elsewhere."
            )
    return {name: split for name, (split,) in found.items()}
