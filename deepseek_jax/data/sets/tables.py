"""Tables for regression: numbers predicted from numbers."""

import numpy as np

from deepseek_jax.data.sets.config import DatasetConfig
from deepseek_jax.data.sets.source import Source, numbered, package


def diabetes(config: DatasetConfig) -> Source:
    """442 patients, ten measurements each, and the progression of their disease a year later (Efron and others, 2004).

    In their original units, so that standardisation is fitted on the training split alone: scikit-learn's default
    scaling was fitted on all records.
    """
    loaded = package("sklearn.datasets", "scikit-learn", "diabetes").load_diabetes(scaled=False)
    records = {
        "ids": numbered(len(loaded.target)),
        "inputs": loaded.data.astype(np.float32),
        "targets": loaded.target[:, None].astype(np.float32),
    }
    names = tuple(loaded.feature_names)
    return Source("diabetes", "numbers", "table", records, names=names, target_names=("progression",))
