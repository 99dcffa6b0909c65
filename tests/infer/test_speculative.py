"""Speculative decoding gives exactly the tokens of plain decoding, in fewer rounds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepseek_jax.errors import UserError
from deepseek_jax.infer import cache_lengths, generate, speculative
from deepseek_jax.infer.prompts import LENGTH_MULTIPLE, NO_EOS
from deepseek_jax.infer.sampling import Sampling
from deepseek_jax.models.config import ModelConfig
from deepseek_jax.models.decoder import Decoder, initialise
from deepseek_jax.models.tree import merge
from tests.infer.untrained import CONFIG

PROMPTS = [[5], [4] * 20, [1, 3, 2, 2, 6, 0]]
MANY = [*PROMPTS, *np.random.default_rng(0).integers(0, 8, (8, LENGTH_MULTIPLE)).tolist()]


def config(depths: int) -> ModelConfig:
    return dataclasses.replace(CONFIG, vocab_size=8, num_nextn_predict_layers=depths)


@pytest.fixture(scope="module")
def model():
    """Untrained, but with so small a vocabulary that many drafts are right by chance.

    It has two MTP modules; one is tested in tests/numerics.
    """
    return initialise(config(2), jax.random.key(1))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, top_k=5, top_p=0.9)], ids=["greedy", "drawn"])
def test_speculative_tokens_equal_those_of_plain_decoding(model, sampling):
    """The rows of one batch accept different numbers of drafts."""
    plain = generate.new_tokens(model, PROMPTS, 40, sampling=sampling, seed=3)
    tokens, acceptance = speculative.new_tokens(model, PROMPTS, 40, sampling=sampling, seed=3)
    np.testing.assert_array_equal(tokens, plain)
    assert 0 < acceptance.accepted < acceptance.drafted
    assert acceptance.rounds < 3 * 39


def test_each_row_ends_with_its_eos(model):
    free, _ = speculative.new_tokens(model, PROMPTS, 40)
    eos = int(free[0, 6])
    tokens, _ = speculative.new_tokens(model, PROMPTS, 40, eos=eos)
    np.testing.assert_array_equal(tokens, generate.new_tokens(model, PROMPTS, 40, eos=eos))
    assert (tokens[0, 6:] == eos).all() and (tokens != free).any()


def test_nan_scores_are_refused(model):
    graphdef, params, buffers = model
    damaged = params | {"embedding": params["embedding"].at[4].set(jnp.nan)}  # the second prompt's token
    with pytest.raises(UserError, match="scores are NaN after 1 of 2 prompts"):
        speculative.new_tokens((graphdef, damaged, buffers), [[5], [4]], 1)


@pytest.mark.slow
def test_growing_caches_lose_no_token(model, monkeypatch):
    """Rows that accept fewer drafts lag behind and must not be cut off; most prompts here have no padding."""
    drawn = {"sampling": Sampling(0.3), "seed": 8}
    plain = generate.new_tokens(model, MANY, 2 * LENGTH_MULTIPLE, **drawn)
    at_once = speculative.new_tokens(model, MANY, 2 * LENGTH_MULTIPLE, **drawn)
    monkeypatch.setattr(cache_lengths, "SHORTEST", 8)
    in_stages = speculative.new_tokens(model, MANY, 2 * LENGTH_MULTIPLE, **drawn)
    for tokens, acceptance in at_once, in_stages:
        np.testing.assert_array_equal(tokens, plain)
        assert acceptance == at_once[1]


def test_a_text_of_one_token_takes_no_round(model):
    """Because no more tokens are wanted, or because the first is the eos."""
    plain = generate.new_tokens(model, PROMPTS[:1], 40)
    for wanted, eos in ((1, NO_EOS), (40, int(plain[0, 0]))):
        tokens, acceptance = speculative.new_tokens(model, PROMPTS[:1], wanted, eos=eos)
        assert (tokens == plain[0, 0]).all() and (acceptance.rounds, acceptance.rate) == (0, 0)


def test_ended_rows_no_longer_count_in_the_acceptance(model):
    _, together = speculative.new_tokens(model, MANY, 40)
    alone = [speculative.new_tokens(model, [prompt], 40)[1] for prompt in MANY]
    assert len({each.rounds for each in alone}) > 1
    assert together.rounds == sum(each.rounds for each in alone)
    assert together.accepted == sum(each.accepted for each in alone)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_drafts_equal_the_modules_predictions_in_a_full_forward_pass(model, prompt):
    """The modules' caches, with rejected drafts overwritten, must match the text: simulating the rounds with the drafts
    of a full forward pass gives the same counts."""
    graphdef, params, buffers = model
    depths = len(params["mtp"])
    _, acceptance = speculative.new_tokens(model, [prompt], 24)
    text = np.concatenate([prompt, generate.new_tokens(model, [prompt], 30)[0]])[None]
    decoder = merge(graphdef, params, buffers)
    states = jax.jit(Decoder.__call__)(decoder, text, np.arange(text.shape[1])[None], np.ones_like(text)).mtp
    guesses = [np.asarray(decoder.logits(hidden).argmax(-1)[0]) for hidden in states]
    newest, rounds, accepted = len(prompt), 0, 0
    while newest < len(prompt) + 23:
        right = [guesses[depth][newest - 1] == text[0, newest + depth + 1] for depth in range(depths)]
        kept = int(np.cumprod(right).sum())
        newest, rounds, accepted = newest + kept + 1, rounds + 1, accepted + kept
    assert (acceptance.rounds, acceptance.accepted) == (rounds, accepted)


def test_drafts_that_are_always_right_save_two_rounds_of_three():
    """With layers that add nothing the next token depends on the current one alone, and the modules predict it."""
    graphdef, params, buffers = initialise(config(2), jax.random.key(1))
    silent = ("out", "down")

    def quiet(path, leaf):
        return jnp.zeros_like(leaf) if path[-1].key in silent else leaf

    params = jax.tree_util.tree_map_with_path(quiet, params)
    only_embedding = jnp.concatenate([jnp.eye(32), jnp.zeros((32, 32))])
    for module in params["mtp"].values():
        module["project"] = only_embedding
    model = graphdef, params, buffers
    tokens, acceptance = speculative.new_tokens(model, PROMPTS, 40)
    np.testing.assert_array_equal(tokens, generate.new_tokens(model, PROMPTS, 40))
    assert acceptance.rate == 1.0
    assert acceptance.rounds == 3 * 13  # 1 token from the prefill, 3 from each round


@pytest.mark.slow
def test_ring_buffers_have_room_for_the_drafts_of_many_modules():
    """Sliding-window caches are ring buffers: rejected drafts must not overwrite entries that are still needed."""
    attention = {"layer_types": ("hca", "window"), "sliding_window": 6, "hca_rate": 4, "o_groups": 1, "o_lora_rank": 8}
    window = dataclasses.replace(config(12), head_dim=16, mlp_layer_types=("dense",), **attention)
    model = initialise(window, jax.random.key(1))
    tokens, acceptance = speculative.new_tokens(model, PROMPTS, 40)
    np.testing.assert_array_equal(tokens, generate.new_tokens(model, PROMPTS, 40))
    assert acceptance.accepted < acceptance.drafted


def test_a_model_without_modules_is_refused():
    with pytest.raises(UserError, match="no multi-token prediction module"):
        speculative.new_tokens(initialise(config(0), jax.random.key(0)), PROMPTS, 4)
