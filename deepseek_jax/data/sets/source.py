"""A set before it is split, and the import of packages that contain sets."""

import dataclasses
import importlib

import numpy as np

from deepseek_jax.data.sets.dataset import Records
from deepseek_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Source:
    """All records of a set; columns as in dataset.py, except that the inputs of a text set are strings.

    given: the split of each record if the source determines it (a series by time, an official test set); None if
    records are split by content.
    origins: a digest of each record's raw source (its file or row).  Records are split by it, so that image size or
    chosen columns do not change the split; None: by their inputs.
    notes: remarks for the user on how it was read, one sentence each.
    """

    name: str
    kind: str
    input: str
    records: Records
    class_names: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    target_names: tuple[str, ...] = ()
    given: np.ndarray | None = None
    season: int = 0
    origins: list[bytes] | None = None
    notes: tuple[str, ...] = ()


def package(module: str, project: str, of: str):
    """Imports `module` for the set `of`; UserError with the package to install if it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise UserError(f"the set {of} is read from a package: pip install {project}.") from None


def numbered(count: int) -> np.ndarray:
    """Ids 0, 1, ... for records that have no others."""
    return np.arange(count, dtype=np.int64)
