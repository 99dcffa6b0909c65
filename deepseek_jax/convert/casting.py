"""Parameters as checkpoints of another type keep them."""

import jax
import numpy as np

from deepseek_jax.convert.finite import Findings
from deepseek_jax.convert.names import place
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.tree import path_of


def cast(config: ModelConfig, params: dict, dtype: str) -> dict:
    """The parameters as `dtype`, but for those that rules.py keeps in float32; numpy arrays.

    Raises UserError, by the path, where it is too small for a number.
    """

    def one(path, array):
        given = np.asarray(array)
        with np.errstate(over="ignore"):  # refused below
            smaller = given.astype(place(path_of(path), config).rule.dtype(dtype), copy=False)
        Findings().look(path_of(path), given, smaller)
        return smaller

    return jax.tree_util.tree_map_with_path(one, params)
