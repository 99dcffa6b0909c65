import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.errors import UserError
from deepseek_jax.infer.sampling import GREEDY, Sampling, nucleus, sample

PROBABILITIES = jnp.array([0.15, 0.5, 0.05, 0.3])
LOGITS = jnp.log(PROBABILITIES)


def frequencies(sampling: Sampling, draws: int = 4000) -> np.ndarray:
    tokens = sample(jnp.broadcast_to(LOGITS, (draws, 4)), jax.random.key(0), sampling)
    return np.bincount(np.asarray(tokens), minlength=4) / draws


def test_greedy_takes_the_first_of_the_best():
    logits = jnp.array([[0.0, 2.0, 2.0, -1.0], [5.0, 1.0, 1.0, 1.0]])
    assert sample(logits, jax.random.key(0), GREEDY).tolist() == [1, 0]


def test_temperature_one_draws_from_the_model():
    np.testing.assert_allclose(frequencies(Sampling(1.0)), PROBABILITIES, atol=0.03)


def test_temperature_sharpens():
    np.testing.assert_allclose(frequencies(Sampling(0.5)), PROBABILITIES**2 / (PROBABILITIES**2).sum(), atol=0.03)


def test_top_k_leaves_k():
    np.testing.assert_allclose(frequencies(Sampling(1.0, top_k=2)), [0, 5 / 8, 0, 3 / 8], atol=0.03)
    np.testing.assert_allclose(frequencies(Sampling(1.0, top_k=99)), PROBABILITIES, atol=0.03)


NUCLEI = [(0.01, [1]), (0.5, [1]), (0.51, [1, 3]), (0.9, [0, 1, 3]), (0.999, [0, 1, 2, 3])]


@pytest.mark.parametrize("top_p, kept", NUCLEI)
def test_top_p_leaves_the_fewest_that_reach_it(top_p, kept):
    assert np.flatnonzero(np.isfinite(nucleus(LOGITS[None], top_p)[0])).tolist() == kept


@pytest.mark.parametrize("settings", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_settings_out_of_range(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        Sampling(**settings)
