"""Fixtures: sets with planted faults."""

import dataclasses

import numpy as np
import pytest

from deepseek_jax.data.sets.config import DatasetConfig
from deepseek_jax.data.sets.dataset import Dataset
from deepseek_jax.data.sets.registry import open_set


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return open_set(DatasetConfig())


@pytest.fixture
def planted(digits):
    """planted(split, **columns) appends records (all columns of a Dataset but ids) to a split of digits.

    Returns (the new set, the ids of these records).
    """

    def plant(split: str, **records) -> tuple[Dataset, list[int]]:
        ids = np.arange(10_000, 10_000 + len(records["inputs"]))
        added = {"ids": ids} | records
        grown = {name: np.concatenate([digits.splits[split][name], added[name]]) for name in added}
        return dataclasses.replace(digits, splits=digits.splits | {split: grown}), ids.tolist()

    return plant
