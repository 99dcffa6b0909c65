"""Parameters as checkpoints of another type keep them."""

import jax
import numpy as np

from deepseek_jax.convert.finite import Findings
from deepseek_jax.convert.names import place
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.tree import path_of


def dtypes(config: ModelConfig, params: dict, dtype: str) -> dict:
    """The type of each parameter in a checkpoint of `dtype`: that, but float32 where rules.py says so."""
    return jax.tree_util.tree_map_with_path(lambda path, _: place(path_of(path), config).rule.dtype(dtype), params)


def cast(config: ModelConfig, params: dict, dtype: str) -> dict:
    """The parameters in their `dtypes`; numpy arrays.

    Raises UserError, by the path, where it is too small for a number.
    """

    def one(path, array, kind):
        given = np.asarray(array)
        with np.errstate(over="ignore"):  # refused below
            smaller = given.astype(kind, copy=False)
        Findings().look(path_of(path), given, smaller)
        return smaller

    return jax.tree_util.tree_map_with_path(one, params, dtypes(config, params, dtype))
