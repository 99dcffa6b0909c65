"""What a set is before it is split, and the packages that sets come in."""

import dataclasses
import importlib

import numpy as np

from deepseek_jax.data.sets.dataset import Records
from deepseek_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Source:
    """All records of a set, columns as in dataset.py but for text, whose inputs are the texts themselves.

    given: the split of each record where the source says it (a series by time, an official test set); None where
    records are split by content.
    origins: a digest of each record's raw source (its file or row).  Records are split by it, so that image size or
    chosen columns do not change the split; None: by their inputs.
    notes: what a person should know of how it was read, a sentence each.
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
    """The imported `module`; UserError that tells what to install where it is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise UserError(f"the set {of} is read from a package: pip install {project}.") from None


def numbered(count: int) -> np.ndarray:
    """Ids of records that have no better name than their place."""
    return np.arange(count, dtype=np.int64)
