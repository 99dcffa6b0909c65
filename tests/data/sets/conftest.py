"""Fixtures: small sets that are quickly opened."""

import numpy as np
import pytest

from deepseek_jax.data.sets import registry
from deepseek_jax.data.sets.config import DatasetConfig
from deepseek_jax.data.sets.dataset import Dataset
from deepseek_jax.data.sets.source import Source, numbered


@pytest.fixture(scope="session")
def config(tmp_path_factory) -> DatasetConfig:
    """The config of digits, prepared in a temporary directory."""
    return DatasetConfig(directory=str(tmp_path_factory.mktemp("sets")))


@pytest.fixture(scope="session")
def digits(config) -> Dataset:
    return registry.open_set(config)


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """opened(source, **settings of DatasetConfig) opens a Source as a set."""

    def open_it(source: Source, **settings) -> Dataset:
        monkeypatch.setitem(registry.SOURCES, source.name, (source.input, lambda config: source))
        return registry.open_set(DatasetConfig(name=source.name, directory=str(tmp_path), **settings))

    return open_it


@pytest.fixture
def uneven() -> Source:
    """Three classes of 60, 30 and 10 random 4 x 4 pictures."""
    rng = np.random.default_rng(0)
    inputs = rng.random((100, 4, 4, 1), np.float32)
    labels = np.repeat(np.arange(3), [60, 30, 10]).astype(np.int32)
    records = {"ids": numbered(100), "inputs": inputs, "labels": labels}
    return Source("uneven", "classes", "image", records, class_names=("most", "some", "few"))
