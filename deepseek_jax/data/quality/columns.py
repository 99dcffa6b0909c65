"""Columns of a table from which nothing can be learned, and columns that give the answer away."""

import numpy as np

from deepseek_jax.data.quality.finding import Finding
from deepseek_jax.data.sets.dataset import Dataset, Records

FEWEST = 5  # records, of a class or in total; with fewer, a column may tell the answer by chance
SAME = 1 - 1e-6  # correlation from which two columns count as equal but for rounding and unit
SHOWN = 5  # names of columns in a sentence


def columns(dataset: Dataset) -> Finding | None:
    """None if the input is not a table.  A column that tells the answer may be derived from it, or known only later."""
    if dataset.input != "table":
        return None
    train = dataset.splits["train"]
    constant, telling = {}, {}
    for name, column in zip(dataset.names, train["inputs"].T, strict=True):
        if (column == column[0]).all():
            constant[name] = f"is {column[0]:g} in every training record"
        elif told := _told(dataset, train, column.astype(np.float64)):
            telling[name] = told
    sentences = (
        f"{len(constant):,} of {len(dataset.names):,} columns never change in training{_listed(constant)}",
        f"{len(telling):,} give the answer away{_listed(telling)}",
    )
    rows = tuple((constant | telling).items())
    return Finding("Columns", "; ".join(sentences), heads=("column", "what it does"), rows=rows)


def _listed(names: dict[str, str]) -> str:
    more = ", ..." if len(names) > SHOWN else ""
    return f" ({', '.join([*names][:SHOWN])}{more})" if names else ""


def _told(dataset: Dataset, train: Records, column: np.ndarray) -> str:
    """What the column alone reveals of the answer, in words; "" if nothing."""
    if dataset.kind == "classes":
        return "alone determines the class" if _tells_classes(column, train["labels"]) else ""
    if len(column) < FEWEST:
        return ""
    for name, target in zip(dataset.target_names, train["targets"].T, strict=True):
        if abs(np.corrcoef(column, target)[0, 1]) > SAME:
            return f"equals {name}, perhaps in another unit"
    return ""


def _tells_classes(column: np.ndarray, labels: np.ndarray) -> bool:
    """Whether each class has its own, separate range of values; classes of fewer than FEWEST records are ignored."""
    known = np.bincount(labels)[labels] >= FEWEST
    order = np.lexsort((labels[known], column[known]))
    values, classes = column[known][order], labels[known][order]
    changes = np.flatnonzero(np.diff(classes))
    apart = (values[changes] < values[changes + 1]).all()
    return bool(apart) and 0 < len(changes) == len(np.unique(classes)) - 1
