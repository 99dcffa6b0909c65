"""How a model's parameters get their random keys."""

import jax
import numpy as np
from flax import nnx

from deepseek_jax.models import tree


def test_keys_derived_together_are_those_of_nnx():
    """Else a config and a seed would give another model than they did."""
    ours, theirs = tree.new_rngs(5), nnx.Rngs(params=5)
    for _ in range(2 * tree.KeysTogether.MANY + 1):
        np.testing.assert_array_equal(*(jax.random.key_data(rngs.params()) for rngs in (ours, theirs)))
    np.testing.assert_array_equal(*(jax.random.key_data(rngs.fork().params()) for rngs in (ours, theirs)))
