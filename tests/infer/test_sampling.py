import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.errors import UserError
from deepseek_jax.infer.sampling import GREEDY, Sampling, nucleus, sample, token_keys

PROBABILITIES = jnp.array([0.15, 0.5, 0.05, 0.3])
LOGITS = jnp.log(PROBABILITIES)


def frequencies(sampling: Sampling, draws: int = 4000) -> np.ndarray:
    """Relative frequencies of the four tokens in `draws` samples: two rows, each position with its own key."""
    keys = token_keys(jax.random.key(0), jnp.broadcast_to(jnp.arange(draws // 2), (2, draws // 2)))
    tokens = sample(jnp.broadcast_to(LOGITS, (*keys.shape, 4)), keys, sampling.drawing())
    return np.bincount(np.asarray(tokens).reshape(-1), minlength=4) / draws


def test_greedy_takes_the_first_of_the_best():
    logits = jnp.array([[[0.0, 2.0, 2.0, -1.0], [5.0, 1.0, 1.0, 1.0]]])
    keys = token_keys(jax.random.key(0), jnp.arange(2)[None])
    assert sample(logits, keys, GREEDY.drawing()).tolist() == [[1, 0]]


@pytest.mark.parametrize("temperature", [1e-29, 1e-38, 1e-300])
def test_a_temperature_near_zero_takes_the_best(temperature):
    assert frequencies(Sampling(temperature), draws=8).tolist() == [0, 1, 0, 0]


def test_other_temperatures_and_top_p_do_not_recompile():
    compiled = jax.jit(sample)
    keys, logits = token_keys(jax.random.key(0), jnp.arange(2)[None]), jnp.zeros((1, 2, 4))
    for temperature, top_p in (
        *((0.7, 0.9), (0.8, 0.9), (0.8, 0.5), (2, 0.5), (10**30, 0.5)),
        *((np.float64(0.8), np.float32(0.5)), (jnp.array([0.8]), np.array(0.5)), (Fraction(1, 2), Fraction(1, 2))),
    ):
        compiled(logits, keys, Sampling(temperature, top_p=top_p).drawing())
    assert compiled._cache_size() == 1


def test_each_token_has_its_own_key():
    """A key depends on the row and the token's number alone, whatever the shape of the request."""
    keys = jax.random.key_data(token_keys(jax.random.key(0), jnp.arange(8).reshape(2, 4)))
    assert len({tuple(key) for key in np.asarray(keys).reshape(8, -1)}) == 8
    later = jax.random.key_data(token_keys(jax.random.key(0), jnp.array([[2], [6]])))
    np.testing.assert_array_equal(later[:, 0], keys[:, 2])
    (first,), (second,) = jax.random.key_data(token_keys(jax.random.key(0), jnp.zeros((2, 1), jnp.int32)))
    assert (first != second).any()


def test_temperature_one_samples_the_models_distribution():
    np.testing.assert_allclose(frequencies(Sampling(1.0)), PROBABILITIES, atol=0.03)


def test_samples_from_a_large_vocabulary_have_the_right_distribution():
    """1,000 tokens, sampled in blocks of 32 of which the last is short, every seventh excluded; chi-squared test."""
    logits = np.random.default_rng(0).normal(0, 1, 1000).astype(np.float32)
    logits[::7] = -np.inf
    count = 200_000
    keys = token_keys(jax.random.key(1), jnp.arange(count)[None])
    draw = jax.jit(lambda keys: sample(jnp.broadcast_to(logits, (*keys.shape, 1000)), keys, Sampling(1.0).drawing()))
    found = np.zeros(1000)
    for part in jnp.split(keys, 20, axis=1):
        found += np.bincount(np.asarray(draw(part)).reshape(-1), minlength=1000)
    expected = np.exp(logits.astype(np.float64))
    expected *= count / expected.sum()
    assert not found[::7].any()
    left = expected > 0
    assert ((found - expected)[left] ** 2 / expected[left]).sum() < 1000 + 5 * math.sqrt(2 * 1000)


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 4, 5, 9, 10, 17])
def test_every_token_of_a_small_vocabulary_is_sampled(vocabulary):
    keys = token_keys(jax.random.key(0), jnp.arange(1000)[None])
    tokens = sample(jnp.zeros((1, 1000, vocabulary)), keys, Sampling(1.0).drawing())
    assert np.unique(tokens).tolist() == list(range(vocabulary))


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0), Sampling(0.5, top_k=2, top_p=0.9)])
def test_nan_scores_give_a_token_outside_the_vocabulary(sampling):
    keys = token_keys(jax.random.key(0), jnp.arange(3)[None])
    logits = jnp.broadcast_to(LOGITS, (1, 3, 4)).at[0, 1, 2].set(jnp.nan)
    tokens = np.asarray(sample(logits, keys, sampling.drawing()))[0]
    assert tokens[1] >= 4 and (tokens[[0, 2]] < 4).all()


def test_a_temperature_below_one_sharpens_the_distribution():
    np.testing.assert_allclose(frequencies(Sampling(0.5)), PROBABILITIES**2 / (PROBABILITIES**2).sum(), atol=0.03)


def test_top_k_keeps_the_k_best():
    np.testing.assert_allclose(frequencies(Sampling(1.0, top_k=2)), [0, 5 / 8, 0, 3 / 8], atol=0.03)
    np.testing.assert_allclose(frequencies(Sampling(1.0, top_k=99)), PROBABILITIES, atol=0.03)


@pytest.mark.parametrize("top_p", [1e-30, 1e-40, 1e-300])
def test_a_top_p_near_zero_takes_the_best(top_p):
    assert frequencies(Sampling(1.0, top_p=top_p), draws=8).tolist() == [0, 1, 0, 0]


NUCLEI = [(0.01, [1]), (0.5, [1]), (0.51, [1, 3]), (0.9, [0, 1, 3]), (0.999, [0, 1, 2, 3])]


@pytest.mark.parametrize("top_p, kept", NUCLEI)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p, kept):
    assert np.flatnonzero(np.isfinite(nucleus(LOGITS[None], top_p)[0])).tolist() == kept


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1.0},
        {"temperature": math.inf},
        {"temperature": 10**400},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
    ],
)
def test_sampling_settings_out_of_range_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        Sampling(**settings)


@pytest.mark.parametrize("settings", [{"temperature": "1"}, {"top_k": "2"}, {"top_p": None}])
def test_sampling_settings_that_are_not_numbers_are_refused(settings):
    with pytest.raises(UserError, match=r"(temperature|top_k|top_p) is ('\d'|None); it must be a number\."):
        Sampling(**settings)


def test_sampling_settings_may_be_numpy_or_jax_scalars():
    assert Sampling(np.float32(1), np.int64(2), jnp.float32(0.5)) == Sampling(1.0, 2, 0.5)


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.9999])
def test_a_nucleus_of_many_tokens_with_ties_and_excluded_tokens(top_p):
    logits = np.random.default_rng(0).normal(0, 3, (4, 5000)).round(2).astype(np.float32)
    logits[:, ::7] = -np.inf
    left = np.asarray(jax.jit(nucleus)(logits, top_p))
    for row, kept in zip(logits, np.isfinite(left)):
        share = np.exp(row.astype(np.float64)) / np.exp(row.astype(np.float64)).sum()
        np.testing.assert_array_equal(kept, row >= row[kept].min())
        assert share[row > row[kept].min()].sum() < top_p + 1e-6 and share[kept].sum() > top_p - 1e-6


def test_top_k_comes_before_top_p():
    """Among the top 2 tokens the better has 5/8, which reaches top_p=0.6; among all it has 1/2, which does not."""
    assert frequencies(Sampling(1.0, top_k=2, top_p=0.6), draws=400).tolist() == [0, 1, 0, 0]
