"""Casting parameters to the dtype of a checkpoint."""

import jax
import numpy as np

from deepseek_jax.convert.finite import Findings
from deepseek_jax.convert.names import place
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.parallel.logical import path_of


def dtypes(config: ModelConfig, params: dict, dtype: str) -> dict:
    """The dtype of each parameter in a checkpoint of `dtype`: the same, except float32 where rules.py says so."""
    return jax.tree_util.tree_map_with_path(lambda path, _: place(path_of(path), config).rule.dtype(dtype), params)


def cast(config: ModelConfig, params: dict, dtype: str) -> dict:
    """The parameters cast to their `dtypes`, as numpy arrays.

    Raises UserError, naming the parameter's path, if a number overflows the new type.
    """

    def one(path, array, kind):
        given = np.asarray(array)
        with np.errstate(over="ignore"):  # refused below
            smaller = given.astype(kind, copy=False)
        Findings().look(path_of(path), given, smaller)
        return smaller

    return jax.tree_util.tree_map_with_path(one, params, dtypes(config, params, dtype))
