"""Log-likelihoods of rows, beside those from a plain forward pass over each row alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.infer.generate import new_tokens
from deepseek_jax.infer.likelihood import likelihoods
from deepseek_jax.infer.prompts import power_of_two
from deepseek_jax.models.decoder import initialise
from deepseek_jax.models.tree import merge
from tests.infer.untrained import CONFIG

ROWS = [[5, 6, 7, 8, 9], [9] * 40, [11], [11, 3]]


@pytest.fixture(scope="module")
def model():
    return initialise(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def log_softmax(model):
    """Returns log_softmax(row), [tokens, V] without padding."""

    @jax.jit
    def run(tokens):
        decoder = merge(*model)
        hidden = decoder(tokens, jnp.arange(tokens.shape[1])[None], jnp.ones_like(tokens)).hidden
        return jax.nn.log_softmax(decoder.logits(hidden))[0]

    return lambda row: np.asarray(run(jnp.asarray([row])))


def test_padded_batches_give_what_each_row_alone_gives(model, log_softmax):
    for row, found in zip(ROWS, likelihoods(model, ROWS, batch_size=3), strict=True):
        alone = log_softmax(row)
        np.testing.assert_allclose(found.tokens, alone[np.arange(len(row) - 1), row[1:]], atol=1e-5)
        np.testing.assert_array_equal(found.likeliest, alone[:-1].argmax(axis=1) == row[1:])
        np.testing.assert_allclose(found.following, alone[-1], atol=1e-5)


def test_an_ending_counts_its_own_tokens_only(model, log_softmax):
    prompt = [5, 6, 7]
    greedy = new_tokens(model, [prompt], 4)[0].tolist()
    (found,) = likelihoods(model, [prompt + greedy[:3]], batch_size=1)
    alone = log_softmax(prompt + greedy[:3])
    nats, is_greedy = found.of_ending(greedy)
    assert is_greedy and nats == pytest.approx(alone[np.arange(2, 6), greedy].sum(), abs=1e-5)
    other = (greedy[3] + 1) % CONFIG.vocab_size
    assert found.of_ending([*greedy[1:3], other]) == (pytest.approx(found.tokens[-2:].sum() + alone[-1, other]), False)
    (astray,) = likelihoods(model, [[*prompt, other, *greedy[1:3]]], batch_size=1)
    last = int(astray.following.argmax())
    assert not astray.of_ending([other, *greedy[1:3], last])[1] and astray.of_ending([last])[1]


def test_more_padding_changes_no_token(model):
    prompts = [[5, 6, 7], [11, 3]]
    np.testing.assert_array_equal(new_tokens(model, prompts, 6, padded_to=64), new_tokens(model, prompts, 6))
    assert [power_of_two(length) for length in (1, 32, 33, 64, 1000)] == [32, 32, 64, 64, 1024]
