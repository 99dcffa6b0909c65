"""`data check NAME`: decides whether NAME is a labelled set or a corpus, and runs the checks."""

import pathlib
from collections.abc import Mapping

from deepseek_jax import experiment_file
from deepseek_jax.data.corpora import CORPORA
from deepseek_jax.data.documents import source_files
from deepseek_jax.data.quality.all_records import AllRecords
from deepseek_jax.data.quality.check import check_corpus, check_set
from deepseek_jax.data.quality.finding import Finding
from deepseek_jax.data.sets.formats import CSV, format_of
from deepseek_jax.data.sets.registry import SOURCES, open_set
from deepseek_jax.errors import UserError
from deepseek_jax.reporting import Report

SHIPPED = (*CORPORA, "mix")  # corpora by name
PICTURES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}  # suffixes of image files


def check(name: str, overrides: Mapping[str, str], report: Report) -> tuple[AllRecords, list[Finding]]:
    """(all records, what the checks found).  `overrides`: texts by dotted config key.

    UserError if `name` is neither a labelled set, a corpus nor a path.
    """
    if not _names_any(name):
        raise UserError(
            f"{name!r} is neither a labelled set ({', '.join(SOURCES)}, tfds:NAME), nor a corpus "
            f"({', '.join(SHIPPED)}), nor a file or directory."
        )
    if names_corpus(name, overrides):
        return check_corpus(experiment_file.resolve(None, {"data.source": name, **overrides}).data, report)
    return check_set(open_set(experiment_file.of_set(name, overrides).dataset), report)


def _names_any(name: str) -> bool:
    known = name in SOURCES or name in SHIPPED or name.startswith("tfds:")
    return known or pathlib.Path(name).expanduser().exists()


def names_corpus(name: str, overrides: Mapping[str, str]) -> bool:
    """Whether `name` is a corpus.  A .jsonl or .parquet can be either, and so can a directory: a labelled set if
    overrides set dataset.*.

    Names that this package knows take precedence over files of that name in the working directory.
    """
    if name in SHIPPED or name in SOURCES:
        return name in SHIPPED
    path = pathlib.Path(name).expanduser()
    kind, of_set = format_of(path), any(key.startswith("dataset.") for key in overrides)
    tabular = kind and (of_set or (kind == CSV and path.is_file()))
    return path.exists() and not tabular and not _holds_pictures(path)


def _holds_pictures(path: pathlib.Path) -> bool:
    """Whether most of the files at `path` are images, so that it is no corpus of texts."""
    suffixes = [file.suffix.lower() for file in source_files(path)]
    return 2 * sum(suffix in PICTURES for suffix in suffixes) > len(suffixes)
